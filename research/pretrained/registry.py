"""Families of pretrained models by "model_type". A new family is one file and one line here."""

from research.pretrained.families.bart import BART
from research.pretrained.families.bert import BERT
from research.pretrained.families.bloom import BLOOM
from research.pretrained.families.gemma import GEMMAS
from research.pretrained.families.gpt2 import GPT2
from research.pretrained.families.gpt_neox import GPT_NEOX
from research.pretrained.families.llama import LLAMA_SHAPED
from research.pretrained.families.mamba2 import MAMBA2
from research.pretrained.families.marian import MARIAN
from research.pretrained.families.mpt import MPT
from research.pretrained.families.qwen3_next import QWEN3_NEXT
from research.pretrained.families.t5 import T5
from research.pretrained.family import Family

DECODERS = (GPT2, *LLAMA_SHAPED, *GEMMAS, GPT_NEOX, BLOOM, MPT, MAMBA2, QWEN3_NEXT)
ENCODERS = (T5, BART, MARIAN, BERT)
FAMILIES: dict[str, Family] = {one.name: one for one in (*DECODERS, *ENCODERS)}
