"""Make a real Qwen2 checkpoint of 1.3 MB in a folder: `tiny_checkpoint.py DIR [SEED]`, with vLLM's own Python.

Its weights are random, so its replies are noise; everything else is real: config.json, safetensors, a byte-level
BPE tokenizer, a ChatML chat template, a generation config.
"""
# mypy: disable-error-code="import-not-found, attr-defined, no-untyped-call, unused-ignore"

from __future__ import annotations

import sys
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 1000
CONTEXT = 4096


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE of at most `VOCABULARY` tokens, trained on this file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - vLLM's venv
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - vLLM's venv

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([Path(__file__).read_text("utf-8")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=SPECIAL_TOKENS[2],
        pad_token=SPECIAL_TOKENS[0],
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def make_model(folder: Path, seed: int) -> None:
    """Two layers, four heads, two KV heads, tied embeddings, bf16: about 0.6 M parameters."""
    import torch  # noqa: PLC0415 - vLLM's venv
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415 - vLLM's venv

    torch.manual_seed(seed)
    end_of_text, _, end_of_turn = range(len(SPECIAL_TOKENS))
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_turn,
        pad_token_id=end_of_text,
        dtype="bfloat16",
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=end_of_turn, do_sample=True, temperature=0.7, top_p=0.8
    )
    model.save_pretrained(folder)


def main() -> None:
    """Write the checkpoint into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    make_model(folder, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)


if __name__ == "__main__":
    main()
