"""The survey's table of contents, and where each technique that works today is implemented in nbllm.

Source: Liu et al. 2024, "Understanding LLMs: A Comprehensive Overview from Training to Inference", arXiv:2401.02038.
An entry is added when its technique works, not before; a test resolves every home.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

SECTIONS = {
    "2.1": "Transformer",
    "2.2": "Prompt learning",
    "3.1": "Data preparation and preprocessing",
    "3.2": "Architecture",
    "3.3": "Pre-training tasks",
    "3.4": "Model training",
    "3.5": "Fine-tuning",
    "3.6": "Evaluation",
    "4.1": "Model compression",
    "4.2": "Memory scheduling",
    "4.3": "Parallelism",
    "4.4": "Structural optimization",
    "5": "Utilization of LLMs",
}

# Where the techniques of a section are shown, unless they say otherwise; the tour shows the rest.
NOTEBOOKS = {"2.1": "01-transformer", "3.1": "02-data", "3.2": "03-architectures", "3.3": "03-architectures"}


@dataclasses.dataclass(frozen=True)
class Technique:
    """One technique that the survey names.

    Args:
        section: Number of the survey's section.
        name: The survey's name for it.
        home: The dotted name of the code.
        notebook: The notebook that shows it; "": that of its section.
    """

    section: str
    name: str
    home: str
    notebook: str = ""

    def __post_init__(self) -> None:
        if not self.notebook:
            object.__setattr__(self, "notebook", NOTEBOOKS.get(self.section, "00-tour"))


TECHNIQUES = (
    Technique("2.1", "Self-attention, multi-head and grouped-query", "nbllm.nn.attention.Attention"),
    Technique("2.1", "Feed-forward layer, plain and gated", "nbllm.nn.feed_forward.FeedForward"),
    Technique("2.1", "Absolute (learned) positions", "nbllm.nn.positions.LearnedPositions"),
    Technique("2.1", "Absolute (sinusoidal) positions", "nbllm.nn.positions.SinusoidalPositions"),
    Technique("2.1", "Two-dimensional positions (GLM)", "nbllm.nn.positions.Learned2DPositions"),
    Technique("2.1", "ALiBi", "nbllm.nn.positions.ALiBiPositions"),
    Technique("2.1", "Relative positions (T5's buckets)", "nbllm.nn.positions.RelativeBuckets"),
    Technique("2.1", "Relative positions (Transformer-XL's)", "nbllm.nn.positions.TransformerXLPositions"),
    Technique("2.1", "Rotary positions (RoPE)", "nbllm.nn.positions.RotaryPositions"),
    Technique("2.1", "RoPE scaling (linear, NTK, YaRN, LLaMA 3)", "nbllm.nn.positions.RopeScaling"),
    Technique("2.1", "LayerNorm and RMSNorm", "nbllm.nn.normalization.make_norm"),
    Technique("2.1", "Pre-norm, post-norm and sandwich norm", "nbllm.models.Block"),
    Technique("2.1", "Soft-capped scores and logits", "nbllm.nn.attention_backends.eager"),
    Technique("2.1", "Cross-attention", "nbllm.nn.CrossAttention"),
    Technique("2.1", "Sliding-window attention", "nbllm.nn.masks.sliding_window_mask"),
    Technique("2.1", "Parallel attention and feed-forward", "nbllm.models.Block"),
    Technique("2.1", "Mixture of experts", "nbllm.nn.mixture_of_experts.MixtureOfExperts"),
    Technique("3.1", "Data sources", "nbllm.data.load"),
    Technique("3.1", "Mixtures of texts", "nbllm.data.mix"),
    Technique("3.1", "Preparation in one call, with a ledger", "nbllm.data.prepare"),
    Technique("3.1", "Pipelines of preparation steps", "nbllm.data.Pipeline"),
    Technique("3.1", "Tokenization (byte-level BPE, Unigram, WordPiece)", "nbllm.data.train_tokenizer"),
    Technique("3.1", "Comparison of tokenizers", "nbllm.data.compare_tokenizers"),
    Technique("3.1", "Vocabulary expansion", "nbllm.data.expand_vocabulary"),
    Technique("3.1", "Privacy redaction", "nbllm.data.privacy"),
    Technique("3.1", "Canaries and their exposure", "nbllm.data.canaries"),
    Technique("3.1", "Toxicity", "nbllm.data.toxicity"),
    Technique("3.1", "Harm audit of filters", "nbllm.data.harm_audit"),
    Technique("3.1", "Associations of identity groups", "nbllm.data.identity_associations"),
    Technique("3.1", "Decontamination", "nbllm.data.decontaminate"),
    Technique(
        "3.1", "Deduplication of near-duplicates (MinHash)", "nbllm.data.deduplication.near.NearDuplicates"
    ),
    Technique(
        "3.1", "Deduplication of equal documents and lines", "nbllm.data.deduplication.exact.ExactDuplicates"
    ),
    Technique(
        "3.1",
        "Deduplication of substrings (suffix array)",
        "nbllm.data.deduplication.substrings.RepeatedSubstrings",
    ),
    Technique(
        "3.1", "Deduplication by meaning (embeddings)", "nbllm.data.deduplication.semantic.SemanticDuplicates"
    ),
    Technique("3.1", "Quality by heuristics: Gopher, C4, FineWeb, RefinedWeb", "nbllm.data.quality"),
    Technique("3.1", "Quality by a classifier", "nbllm.data.train_classifier"),
    Technique("3.1", "Quality by perplexity", "nbllm.data.NgramPerplexity"),
    Technique("3.1", "Importance resampling (DSIR)", "nbllm.data.ImportanceResampling"),
    Technique("3.1", "Language identification", "nbllm.data.Language"),
    Technique("3.1", "Packing", "nbllm.data.pack"),
    Technique("3.1", "Packing whole documents (best-fit decreasing, greedy)", "nbllm.data.pack_rows"),
    Technique("3.1", "Packing with isolated documents", "nbllm.objectives.isolation"),
    Technique("3.2", "Causal decoder", "nbllm.models.Decoder"),
    Technique("3.2", "Prefix decoder", "nbllm.models.PrefixDecoder"),
    Technique("3.2", "Encoder", "nbllm.models.Encoder"),
    Technique("3.2", "Encoder-decoder", "nbllm.models.EncoderDecoder"),
    Technique("3.2", "T5 and FLAN-T5", "nbllm.models.families.t5"),
    Technique("3.2", "BART", "nbllm.models.families.bart"),
    Technique("3.2", "BERT", "nbllm.models.families.bert"),
    Technique("3.2", "RoBERTa", "nbllm.models.families.roberta"),
    Technique("3.2", "DistilBERT", "nbllm.models.families.distilbert"),
    Technique("3.2", "ALBERT", "nbllm.models.families.albert"),
    Technique("3.2", "GPT-2", "nbllm.models.families.gpt2"),
    Technique("3.2", "LLaMA", "nbllm.models.families.llama"),
    Technique("3.2", "OPT", "nbllm.models.families.opt"),
    Technique("3.2", "BLOOM", "nbllm.models.families.bloom"),
    Technique("3.2", "GPT-NeoX and Pythia", "nbllm.models.families.gpt_neox"),
    Technique("3.2", "GPT-J", "nbllm.models.families.gptj"),
    Technique("3.2", "RWKV", "nbllm.models.rwkv.RWKV"),
    Technique("3.2", "PaLM, Gopher and the first GLM", "nbllm.models.families.own"),
    Technique("3.2", "Phi", "nbllm.models.families.phi"),
    Technique("3.2", "Mistral", "nbllm.models.families.mistral"),
    Technique("3.2", "Mixtral", "nbllm.models.families.mixtral"),
    Technique("3.2", "GLM-4", "nbllm.models.families.glm"),
    Technique("3.2", "Gemma 2 and Gemma 3 (text)", "nbllm.models.families.gemma3"),
    Technique("3.2", "Qwen2 and Qwen3", "nbllm.models.families.qwen3"),
    Technique("3.3", "Language modelling", "nbllm.objectives.CausalLM"),
    Technique("3.3", "Masked language modelling", "nbllm.objectives.MaskedLM"),
    Technique("3.3", "Whole-word masking", "nbllm.objectives.WholeWordMaskedLM"),
    Technique("3.3", "Prefix language modelling", "nbllm.objectives.PrefixLM"),
    Technique("3.3", "Span corruption (T5)", "nbllm.objectives.SpanCorruption"),
    Technique("3.3", "Denoising (BART)", "nbllm.objectives.Denoising"),
    Technique("3.3", "Blank infilling (GLM)", "nbllm.objectives.BlankInfilling"),
    Technique("3.3", "Mixture of denoisers (UL2)", "nbllm.objectives.MixtureOfDenoisers"),
    Technique("3.3", "Fill-in-the-middle", "nbllm.objectives.FillInTheMiddle"),
    Technique("3.4", "AdamW, warm-up, cosine and WSD schedules", "nbllm.training.schedules"),
    Technique("3.4", "Adafactor, Lion, Muon, AdamW in 8 bits", "nbllm.training.optimizers"),
    Technique(
        "3.4",
        "Mixed precision (bfloat16 and float16 with float32 masters)",
        "nbllm.distributed.master_weights.MasterWeights",
    ),
    Technique("3.4", "Loss scaling", "nbllm.training.loss_scaling"),
    Technique("3.4", "Data parallelism", "nbllm.distributed.data_parallel.DataParallel"),
    Technique("3.4", "ZeRO, stages 1 to 3, and hybrid", "nbllm.distributed.zero"),
    Technique(
        "3.4", "Offload of weights, gradients and optimizer state to disk", "nbllm.distributed.offload"
    ),
    Technique(
        "3.4",
        "Offload of weights, gradients and optimizer state to the CPU's memory",
        "nbllm.distributed.cpu_offload.CPUOffload",
    ),
    Technique(
        "3.4",
        "Several processes, restarts, clusters",
        "nbllm.distributed.launch.Launch",
        "04-training-at-scale",
    ),
    Technique(
        "3.4",
        "Tensor, sequence and loss parallelism",
        "nbllm.distributed.tensor_parallel.apply_tensor_parallel",
    ),
    Technique("3.4", "Sharded, asynchronous checkpoints", "nbllm.training.sharded_writer.ShardedWriter"),
    Technique(
        "3.4", "A plan beside one process", "nbllm.training.verification.verify", "04-training-at-scale"
    ),
    Technique(
        "3.4", "Context parallelism (Ulysses)", "nbllm.distributed.context_parallel.apply_context_parallel"
    ),
    Technique(
        "3.4",
        "Activation checkpointing, full and selective",
        "nbllm.distributed.activation_checkpointing.checkpoint_activations",
    ),
    Technique("3.4", "Compilation", "nbllm.distributed.compilation.compile_network"),
    Technique("3.4", "Profiles of steps by rank", "nbllm.runs.step_profile.StepProfile"),
    Technique(
        "3.4",
        "Pipeline parallelism: GPipe, 1F1B, interleaved, zero bubble",
        "nbllm.distributed.pipeline_parallel.PipelineParallel",
    ),
    Technique("3.4", "Gradient accumulation and clipping", "nbllm.training.Trainer"),
    Technique("3.4", "Checkpoint and recovery", "nbllm.runs.checkpoint"),
    Technique(
        "3.4", "Memory, communication and time of a plan", "nbllm.distributed.explain", "04-training-at-scale"
    ),
    Technique(
        "3.4",
        "Search for the fastest plan that fits",
        "nbllm.distributed.suggest_plan",
        "04-training-at-scale",
    ),
    Technique(
        "3.4", "A plan held to one process", "nbllm.training.verification.verify", "04-training-at-scale"
    ),
    Technique("3.5", "Fine-tuning of all or some parameters", "nbllm.training.train", "11-using-models"),
    Technique("3.5", "Supervised and instruction tuning", "nbllm.finetuning.finetune", "05-finetuning"),
    Technique(
        "3.5", "Instruction data: layouts, mixtures, weights", "nbllm.finetuning.layouts", "05-finetuning"
    ),
    Technique(
        "3.5",
        "Supervised fine-tuning of encoder-decoders",
        "nbllm.objectives.supervised.SupervisedTextToText",
    ),
    Technique(
        "3.5",
        "Domain adaptation by continued pre-training with replay",
        "nbllm.finetuning.continued.Continued",
    ),
    Technique("3.5", "Forgetting, measured", "nbllm.finetuning.forgetting"),
    Technique("3.5", "LoRA, rank-stabilized LoRA and DoRA", "nbllm.models.peft.lora.LoRA", "05-finetuning"),
    Technique("3.5", "QLoRA", "nbllm.models.peft.qlora.QLoRA"),
    Technique("3.5", "(IA)3", "nbllm.models.peft.ia3.IA3"),
    Technique("3.5", "BitFit", "nbllm.models.peft.bitfit.BitFit"),
    Technique("3.5", "Bottleneck adapters (Houlsby, Pfeiffer)", "nbllm.models.peft.bottleneck"),
    Technique("3.5", "Prompt tuning", "nbllm.models.peft.prompt_tuning.PromptTuning"),
    Technique("3.5", "Prefix tuning", "nbllm.models.peft.prefix_tuning.PrefixTuning"),
    Technique("3.5", "P-tuning", "nbllm.models.peft.p_tuning.PTuning"),
    Technique("3.5", "P-tuning v2", "nbllm.models.peft.prefix_tuning.PTuningV2"),
    Technique(
        "3.5", "Preference data: pairs, ratings, rankings, labels", "nbllm.finetuning.alignment.preferences"
    ),
    Technique(
        "3.5",
        "Reward models (Bradley-Terry, with margins, centred)",
        "nbllm.finetuning.alignment.reward_model.RewardModel",
    ),
    Technique(
        "3.5", "Accuracy and calibration of a reward model", "nbllm.finetuning.reward_report", "05-finetuning"
    ),
    Technique("3.5", "PPO from a reward (RLHF)", "nbllm.finetuning.alignment.ppo.PPO"),
    Technique(
        "3.5", "GRPO, Dr. GRPO, token mean (DAPO)", "nbllm.finetuning.alignment.grpo.GRPO", "05-finetuning"
    ),
    Technique("3.5", "RLOO", "nbllm.finetuning.alignment.rloo.RLOO"),
    Technique("3.5", "Verifiable rewards", "nbllm.finetuning.alignment.rewards.REWARDS"),
    Technique("3.5", "Best of n and rejection sampling", "nbllm.finetuning.alignment.best_of_n.best_of_n"),
    Technique("3.5", "DPO, with cDPO and robust DPO", "nbllm.finetuning.alignment.dpo.DPO"),
    Technique("3.5", "IPO", "nbllm.finetuning.alignment.ipo.IPO"),
    Technique("3.5", "KTO", "nbllm.finetuning.alignment.kto.KTO"),
    Technique("3.5", "ORPO", "nbllm.finetuning.alignment.orpo.ORPO"),
    Technique("3.5", "SimPO", "nbllm.finetuning.alignment.simpo.SimPO"),
    Technique("3.6", "Perplexity and bits per byte", "nbllm.evaluation.metrics.perplexity"),
    Technique("3.6", "MMLU and CMMLU", "nbllm.evaluation.tasks.mmlu.MMLU", "06-evaluation"),
    Technique(
        "3.6", "Common sense: HellaSwag, PIQA, WinoGrande, ARC, LAMBADA", "nbllm.evaluation.tasks.hellaswag"
    ),
    Technique("3.6", "Truthfulness: TruthfulQA", "nbllm.evaluation.tasks.truthfulqa.TruthfulQA"),
    Technique("3.6", "Language understanding: GLUE, SuperGLUE, XNLI", "nbllm.evaluation.tasks.glue"),
    Technique("3.6", "Answers in a text: SQuAD, XQuAD", "nbllm.evaluation.tasks.squad"),
    Technique("3.6", "Open questions: Natural Questions, TriviaQA", "nbllm.evaluation.tasks.nq_open.NqOpen"),
    Technique(
        "3.6", "Mathematics and reasoning: GSM8K, MATH, BIG-Bench Hard", "nbllm.evaluation.tasks.gsm8k.Gsm8k"
    ),
    Technique("3.6", "Translation and summarisation", "nbllm.evaluation.tasks.translation.Translation"),
    Technique("3.6", "Tasks of one's own", "nbllm.evaluation.task"),
    Technique("3.6", "BLEU", "nbllm.evaluation.metrics.bleu.Bleu"),
    Technique("3.6", "chrF, chrF++ and TER", "nbllm.evaluation.metrics.chrf.ChrF"),
    Technique("3.6", "ROUGE", "nbllm.evaluation.metrics.rouge.Rouge"),
    Technique("3.6", "BERTScore", "nbllm.evaluation.metrics.bertscore.BertScore"),
    Technique("3.6", "Exact match and F1 of answers", "nbllm.evaluation.metrics.squad_v2"),
    Technique("3.6", "Accuracy, F1 and correlations", "nbllm.evaluation.metrics.labels"),
    Technique("3.6", "Calibration", "nbllm.evaluation.metrics.expected_calibration_error"),
    Technique("3.6", "pass@k", "nbllm.evaluation.metrics.pass_at_k.PassAtK"),
    Technique("3.6", "Diversity and repetition of samples", "nbllm.evaluation.metrics.samples"),
    Technique("3.6", "Intervals of every figure", "nbllm.evaluation.statistics", "06-evaluation"),
    Technique("3.6", "Tests between models", "nbllm.evaluation.significance", "06-evaluation"),
    Technique("3.6", "Contamination", "nbllm.evaluation.contamination", "06-evaluation"),
    Technique("3.6", "Conventions of a benchmark", "nbllm.evaluation.discrepancy", "06-evaluation"),
    Technique("3.6", "Reproduction of a report", "nbllm.evaluation.reproducing", "06-evaluation"),
    Technique("4.2", "Key/value cache", "nbllm.nn.kv_cache.KVCache", "11-using-models"),
    Technique("4.2", "Cross-attention cache", "nbllm.nn.CrossAttentionCache"),
    Technique("4.4", "Attention by blocks", "nbllm.nn.attention_backends.blocked"),
    Technique("5", "Decoding strategies", "nbllm.inference.sampling"),
    Technique("5", "Beam search", "nbllm.inference.beam_search.BeamSearch"),
    Technique("5", "Published models", "nbllm.opening.load", "11-using-models"),
    Technique("5", "Sentence embeddings", "nbllm.lm.LM.embed"),
    Technique("5", "Filling masks", "nbllm.lm.LM.fill"),
    Technique("5", "Conversation", "nbllm.lm.LM.chat", "11-using-models"),
)


class Survey:
    """The table that `nb.survey()` shows."""

    def __iter__(self) -> Iterator[Technique]:
        return iter(TECHNIQUES)

    def __len__(self) -> int:
        return len(TECHNIQUES)

    def __repr__(self) -> str:
        width = max(len(t.name) for t in TECHNIQUES)
        lines = []
        for number, title in SECTIONS.items():
            lines.append(f"{number:<4} {title}")
            found = [t for t in TECHNIQUES if t.section == number]
            lines += [f"     {t.name:<{width}}  {t.home}" for t in found] or ["     (nothing yet)"]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        lines = ["| section | technique | home | notebook |", "| --- | --- | --- | --- |"]
        for number, title in SECTIONS.items():
            for technique in (t for t in TECHNIQUES if t.section == number):
                link = f"[{technique.notebook}]({technique.notebook}.ipynb)"
                lines.append(f"| {number} {title} | {technique.name} | `{technique.home}` | {link} |")
        return "\n".join(lines)


def survey() -> Survey:
    """Return the survey's techniques that work today, each with its module and its notebook."""
    return Survey()
