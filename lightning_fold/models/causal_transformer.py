"""Language models from Hugging Face transformers, built from a configuration; nothing is downloaded."""

from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from lightning_fold.errors import ArgumentError, ArgumentTypeError
from lightning_fold.extras import require


class CausalTransformer(nn.Module):
    """A causal language model from ``transformers`` with random weights: LLaMA or any other architecture.

    Maps tokens ``(B, T)`` int64 to the logits ``(B, T, vocab_size)`` of the next tokens. Needs the extra
    ``transformers``.

    Args:
        model_type: Name of the architecture in ``transformers``, for example "llama", "mistral" or "gpt2".
        vocab_size: Number of tokens in the vocabulary, at least 1.
        config: Configuration values under their names in ``transformers``; for LLaMA ``hidden_size``,
            ``intermediate_size``, ``num_hidden_layers``, ``num_attention_heads``, ``num_key_value_heads``,
            ``max_position_embeddings``, ``tie_word_embeddings`` and others.

    Raises:
        ArgumentError: There is no such causal language model.
        ArgumentTypeError: The configuration has no value of this name.
        MissingPackageError: ``transformers`` is not installed.
    """

    def __init__(self, model_type: str = "llama", vocab_size: int = 256, **config: Any) -> None:
        super().__init__()
        require("CausalTransformer", "transformers", extra="transformers")
        import transformers  # the import takes seconds, and nothing else needs it

        kinds = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if model_type not in kinds:
            raise ArgumentError(
                f"CausalTransformer(model_type={model_type!r}): transformers has no causal language model of this name."
                f"{_suggest(model_type, kinds)} Examples: 'llama', 'mistral' and 'gpt2'"
            )
        known = transformers.AutoConfig.for_model(model_type)
        if unknown := [name for name in config if not hasattr(known, name)]:
            raise ArgumentTypeError(
                f"CausalTransformer(model_type={model_type!r}, {unknown[0]}={config[unknown[0]]!r}): there is no such "
                f"value in {type(known).__name__}.{_suggest(unknown[0], known.to_dict())}"
            )
        chosen = transformers.AutoConfig.for_model(model_type, vocab_size=vocab_size, use_cache=False, **config)
        self.model = transformers.AutoModelForCausalLM.from_config(chosen)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, T, vocab_size)`` of the token that follows each of ``tokens`` ``(B, T)``."""
        return self.model(tokens).logits


def _suggest(name: str, names: Any) -> str:
    close = get_close_matches(name, list(names), n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
