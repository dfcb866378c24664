"""What README shows, runs: its Python cell as it stands, but for the number of steps."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import transformers

import nbllm as nb

README = (Path(__file__).parents[1] / "README.md").read_text()
CELLS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_cell_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell, *_ = CELLS
    short = {
        "steps=700": "steps=70, checkpoint_interval=10, sample_tokens=8, num_threads=1",
        "step=120": "step=12",
        "rewind(100)": "rewind(10)",
        "step=600": "step=60",
        "num_layers=4, hidden_size=256": "num_layers=1, hidden_size=32",
    }
    for long, quick in short.items():
        assert long in cell
        cell = cell.replace(long, quick)
    names: dict[str, object] = {}
    exec(cell, names)  # our own README
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert names["other"].state == "finished"


def test_other_architectures_are_made_and_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, cell, _ = CELLS
    short = {
        'nb.load("all-minilm-l6-v2")': 'nb.LM.new("minilm-l6", tokenizer=tokenizer)',  # which may not be here
        "steps=500": "steps=2, batch_size=2, sequence_length=32",
        "num_layers=4, hidden_size=256, num_heads=4": "num_layers=1, hidden_size=32, num_heads=2",
    }
    for long, quick in short.items():
        assert long in cell
        cell = cell.replace(long, quick)
    train = nb.data.load("pydocs").select(range(3))
    names = {"nb": nb, "train": train, "tokenizer": nb.data.train_tokenizer(train, vocab_size=300)}
    exec(cell, names)  # our own README
    assert names["t5"].config.network == "encoder_decoder"


def test_loops_of_others_become_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, cell = CELLS
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 64, (16, 8))]
    optimizer = torch.optim.AdamW(model.parameters())

    def train_step(batch, lr):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        return loss

    args = transformers.TrainingArguments("out", max_steps=3, report_to=[], disable_tqdm=True, use_cpu=True)
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    exec(cell, {**locals(), "nb": nb, "transformers": transformers})  # our own README
    runs = {run.name: run for run in nb.runs()}
    assert {name: (run.state, run.step) for name, run in runs.items()} == {
        "mine": ("finished", 12),
        "theirs": ("finished", 3),
    }
    assert (runs["mine"].summary.loss_unit, runs["theirs"].summary.loss_unit) == ("", "nats/token")


def test_the_commands_are_those_of_ci():
    ci = (Path(__file__).parents[1] / ".ci" / "run").read_text().replace('"$environment/bin/', '".venv/bin/')
    ci = ci.replace(" --quiet --disable-pip-version-check", "").replace('".venv/bin/pip"', ".venv/bin/pip")
    ci = ci.replace('".venv/bin/python"', ".venv/bin/python")
    commands = [
        line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    parts = [part for command in commands for part in command.split(" && ")]
    assert len(parts) == 5
    for part in parts:
        if part != "python3 -m venv .venv" and not part.endswith(
            "nbllm lab"
        ):  # the tour is run beside a JupyterLab
            assert f"{part}\n" in ci
