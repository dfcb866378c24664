"""A small training run, in the working directory, that leaves Numba's cache and the byte code warm."""

import nbllm as nb
from nbllm.nn.kernels import why_not_compiled

train, held_out = nb.data.split(nb.data.load("pydocs"), 0.1, seed=0)
tokenizer = nb.data.train_tokenizer(train, vocab_size=512)
lm = nb.LM.new("llama", tokenizer=tokenizer, num_layers=1, hidden_size=32, num_heads=2, max_positions=64)
run = nb.train(lm, train, validation=held_out, name="warm", steps=2, batch_size=2, sequence_length=64)
run.wait()
if run.state != "finished":
    raise SystemExit(f"The run did not finish: {run!r}")
nb.evaluate(lm, ["perplexity"], data=held_out.select(range(1)))
for name, error in why_not_compiled().items():
    raise SystemExit(f"The kernels {name!r} could not be compiled: {error}")
