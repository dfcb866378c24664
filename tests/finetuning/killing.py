"""A run whose process is killed, taken up again, and compared with a replay."""

import psutil

import nbllm as nb


def kill_and_finish(run, step):
    """Kill the process of a run at a step; finish it in this one, and check that the whole can be replayed."""
    run.wait(step=step, timeout=120, progress=False)
    process = psutil.Process(run.events("start")[-1]["pid"])
    process.kill()
    psutil.wait_procs([process], timeout=30)
    again = nb.attach(run.path, where="thread")
    again.resume()
    again.wait(timeout=120, progress=False)
    assert again.state == "finished"
    assert nb.replay(again, progress=False).identical
