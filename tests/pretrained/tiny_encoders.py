"""Small configurations of the families with an encoder, of transformers, and their tokenizers."""

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.pretrained.tiny import HEAD, HEADS, HIDDEN, LENGTH, VOCABULARY, WIDTH

ENCODER, DECODER = 3, 2  # transformers keeps a cache for as many layers as the encoder has
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": HEAD,
    "d_ff": HIDDEN,
    "num_layers": ENCODER,
    "num_decoder_layers": DECODER,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": ENCODER,
    "decoder_layers": DECODER,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "max_position_embeddings": LENGTH,
}
LAST = VOCABULARY - 1
CONFIGS: dict[str, tuple[str, dict]] = {
    "t5": ("T5Config", T5),
    "t5_v1_1": (
        "T5Config",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartConfig", BART),
    "marian": (
        "MarianConfig",
        BART
        | {
            "decoder_vocab_size": VOCABULARY,
            "pad_token_id": LAST,
            "decoder_start_token_id": LAST,
            "eos_token_id": 0,
            "scale_embedding": True,
            "activation_function": "swish",
        },
    ),
    "bert": (
        "BertConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": ENCODER,
            "num_attention_heads": HEADS,
            "intermediate_size": HIDDEN,
            "max_position_embeddings": LENGTH,
            "id2label": {0: "bad", 1: "so-so", 2: "good"},
        },
    ),
}
"""{name: (class, values)}; a family may be there more than once."""
LETTERS = string.ascii_lowercase


def tokenizer(name: str) -> Tokenizer:
    """Returns a tokenizer of letters with the family's special tokens and its way to add them."""
    return {"bart": bytes_of_bart, "bert": pieces_of_bert}.get(name, lambda: unigram(name))()


def unigram(name: str) -> Tokenizer:
    """Returns one as T5's, or as Marian's: padding first, or last."""
    special = {"marian": ["</s>", "<unk>"]}.get(name, ["<pad>", "</s>", "<unk>"])
    pieces = [*special, *("\u2581" + one for one in LETTERS), *LETTERS, "\u2581"]
    fill = [f"<extra_{i}>" for i in range(VOCABULARY - len(pieces) - 1)]
    pieces += [*fill, "<pad>"] if name == "marian" else fill
    scores = [(piece, -1.0 - i / 100) for i, piece in enumerate(pieces)]
    found = Tokenizer(models.Unigram(scores, unk_id=special.index("<unk>")))
    found.add_special_tokens([*special, "<pad>"])
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    end = pieces.index("</s>")
    found.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", end)])
    return found


def bytes_of_bart() -> Tokenizer:
    """Returns a byte-level one with <s> and </s> around texts."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    names = [*special, *LETTERS, "Ġ", *(f"Ġ{one}" for one in LETTERS)]
    merges = [("Ġ", one) for one in LETTERS]
    found = Tokenizer(models.BPE({one: i for i, one in enumerate(names)}, merges))
    found.add_special_tokens(special)
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return found


def pieces_of_bert() -> Tokenizer:
    """Returns one of pieces of words, with [CLS] and [SEP] around texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    names = [*special, *LETTERS, *(f"##{one}" for one in LETTERS)]
    numbers = {one: i for i, one in enumerate(names)}
    found = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    found.add_special_tokens(special)
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found
