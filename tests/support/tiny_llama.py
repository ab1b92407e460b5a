"""A random Llama with a tokenizer of its own, for tests that need a folder with a real model and do not care what it
has learnt: 5 layers, 8 heads on 4 key/value heads, 512 tokens (byte-pair merges, single bytes for the rest, BOS in
front)."""

import json
import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<unk>", "<s>", "</s>")
VOCABULARY = 512
TEXT = """
Once upon a time there was a little girl named Lily. She liked to play in the park with her friend Tom and a big dog.
One day Tom found a red ball near the tree. The ball was very big and the dog wanted to run after it. They were happy.
"Can I play with you?" asked Ben. "Yes," said Lily, "you can play with us." So they all went to the park together.
Then the cat saw a bird, and the bird flew away. The boat was on the sea and the fish swam in the waves all day long.
Anna said that the sun was warm. Her mom gave her some bread and jam, and they sat down on the bench under the tree.
It was late and they had to go home. The little boy was sad, but his dad told him that he would come back to play again.
He looked at the box and put the toys into it. What is the name of the girl? Where did they go? Who was at the door?
The capital of the old land is a town by the river. The king lived there in a house of stone with a high wall around it.
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair merges learnt from TEXT; what has no token is spelt in bytes; BOS is put in front."""
    rules = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(BPE(unk_token=SPECIAL[0]))
    words = [word.replace(" ", "▁") for line in TEXT.split("\n") for word in re.findall(r" ?\w+|[^\w\s]", f" {line}")]
    learner.train_from_iterator(
        words,  # no merge goes beyond a word
        BpeTrainer(vocab_size=VOCABULARY - 256, special_tokens=list(SPECIAL), show_progress=False),
    )
    learnt = json.loads(learner.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *(t for t in learnt["vocab"] if t not in SPECIAL)]
    assert len(names) == VOCABULARY
    made = Tokenizer(
        BPE(
            {name: i for i, name in enumerate(names)},
            [tuple(pair) for pair in learnt["merges"]],
            unk_token=SPECIAL[0],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer = rules
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def save(folder: Path) -> Path:
    """Write the model and its tokenizer into a folder, as `save_pretrained` does: always the same weights, scaled so
    that attention is far from uniform."""
    torch.manual_seed(0)
    hf = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=5,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=VOCABULARY,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for parameter in hf.parameters():
        if parameter.ndim >= 2:
            parameter.data *= 6
    hf.lm_head.weight.data *= 4  # sure of some tokens more than of others, as trained models are
    seldom = [i for i in range(len(SPECIAL) + 256) if i != hf.config.eos_token_id]  # <unk>, BOS and single bytes
    hf.lm_head.weight.data[seldom] *= 0.1
    hf.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
