"""Every key of a run, once, with its default. The other configs are this one plus a delta.

These are defaults, not a recipe: see configs/recall.py and configs/text.py. Any key can be
overridden on the command line: --config.model.num_heads=8, --config.task.num_pairs="(1, 2)".
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the base config."""
    config = ConfigDict()
    config.seed = 0  # initial parameters, order of the data and dropout follow from it
    config.members = 1  # trains this many seeds (seed, seed + 1, ...) as one program
    config.task = task_config()
    config.model = model_config()
    config.optimizer = optimizer_config()
    config.train = train_config()
    config.decoding = decoding_config()
    config.interpret = interpret_config()
    config.parallel = parallel_config()
    return config


def task_config() -> ConfigDict:
    """Returns what is learned."""
    task = ConfigDict()
    task.name = "recall"  # recall | induction | text | translation | transduction | speech
    task.length = 64  # most tokens of a sequence, the end token among them (recall: even)
    task.batch_size = 32  # sequences per step
    # text: part of it, the last, that is kept for a test; it is taken from the validation's tenth
    task.test_fraction = 0.0
    # text: streamed when training has ended, past what it was trained at, through a rolling cache
    task.stream_sinks = ()  # first tokens that the cache keeps, one stream for each; (): none
    task.stream_window = 0  # tokens of the cache, those among them; 0: length
    task.stream_tokens = 1024  # of each of batch_size pieces of a split
    # text, recall: lengths that it is also evaluated at, without training
    task.eval_lengths = ()
    # recall: multi-query associative recall
    task.vocab_size = 64  # half keys, half values; token 0 is the filler
    task.num_pairs = (4,)  # each sequence draws its number of key-value pairs from these
    task.gap_power = 0.01  # exponent of the power law of the gaps; smaller: shorter gaps
    # recall, induction, rule, transduction: each seed has a test of its own, so that the spread
    # over seeds is that of the test, too; what is decoded or asked at the end is of one test
    task.test_of_seed = False
    # induction: a segment of random tokens comes twice; vocab_size (at least length) as above
    task.segment = (4, 16)  # least and most tokens of it
    # text: language modelling on a file
    # a known corpus or a UTF-8 text file; translation: multi30k, or files "x/{split}.{language}";
    # speech: tones (generated) | fsdd | a tab-separated file of paths and transcripts;
    # sentiment: sst2, or "x/{split}.tsv" or one file of lines text<TAB>label
    task.path = "tinyshakespeare"
    task.tokenizer = "char"  # char | bpe | word (speech, sentiment)
    task.bpe_vocab_size = 1024  # vocabulary of the byte-level BPE, trained on the training split
    # translation: sentences of one language into another
    task.source_language = "de"
    task.target_language = "en"
    # auto: follows target_language | 13a | zh | ja-mecab | ko-mecab | char | intl | none
    task.bleu_tokenizer = "auto"  # of BLEU, as sacrebleu calls it
    task.buckets = 6  # shapes that batches come in: more of them, less padding, longer to compile
    task.label_smoothing = 0.0  # of the training objective (Szegedy 2016); loss is without it
    # sentiment: texts into classes
    task.min_count = 1  # of a word in training, to be in the vocabulary of tokenizer=word
    task.word_dropout = 0.0  # probability of a token to become the unknown one in training
    # rule: noise with keywords that decide the class; vocab_size, min_length and kind as elsewhere
    task.num_keywords = 4  # of each of the two classes
    # transduction: strings into strings, generated, with known alignment; vocab_size as above
    # copy | reverse | substitute | reorder | verbs_last; rule: keyword | pair
    task.kind = "substitute"
    task.min_length = 2  # of the strings trained on, without the end token; rule: of all
    task.train_length = 20
    task.test_lengths = (5, 10, 15, 20, 25, 30)
    task.test_sequences = 100  # of each of these lengths
    # speech: recordings, also joined to strings of them; test_lengths and test_sequences as above
    task.sample_rate = 8000  # Hz; recordings of another rate are resampled
    task.num_mels = 40  # bands of the log-mel features, one frame to 10 ms
    task.max_seconds = 30.0  # of a recording
    task.join = (1, 2, 3, 4, 5)  # recordings of a string; (): recordings as they are, test as well
    task.gap = (0.0, 0.2)  # shortest and longest pause before, between and after them, seconds
    task.speakers = "one"  # one | mixed: in a string
    task.held_out_speaker = ""  # tests on all recordings of this one, trains on none
    task.time_masks = 0  # of SpecAugment (Park 2019), each of up to time_mask frames
    task.time_mask = 10
    task.band_masks = 0  # each of up to band_mask bands
    task.band_mask = 8
    return task


def model_config() -> ConfigDict:
    """Returns what learns it."""
    model = ConfigDict()
    # decoder | encoder_decoder (transformers) | recurrent | speech | classifier
    model.name = "decoder"
    model.width = 64  # of the residual stream; of a recurrent state
    model.num_layers = 2  # of encoder and decoder each, where there are both
    # encoder_decoder: deltas on the mechanism below, which is that of the decoder
    model.encoder_layers = 0  # 0: num_layers
    model.encoder = "mask=full"
    model.cross = "mask=full, position=none"
    # recurrent
    model.cell = "lstm"  # lstm | gru
    # fixed_initial | fixed_every_step | additive | dot | general | concat | local_p | ...
    model.attention = "additive"
    model.input_feeding = True  # of what was read last to the next step (Luong 2015, 3.3)
    model.embedding_width = 0  # 0: width
    # classifier: cell, embedding_width, encoder and encoder_layers as above
    model.body = "transformer"  # transformer | bilstm | lstm | none: pools the embeddings
    model.pooling = "mean"  # class_token (transformer) | mean | attention | last
    # speech: a listener, with encoder_layers, and a speller that is one of the decoders above
    model.listener = "bilstm"  # bilstm | transformer | conformer
    model.subsampling = "convolution"  # convolution | pyramid (Chan 2016; of bilstm)
    model.levels = 2  # times that the subsampling halves the number of frames: 0 to 3
    model.speller = "recurrent"  # recurrent | transformer
    model.ctc_weight = 0.0  # of CTC in the objective (Kim 2017); 0: no CTC; 1: no speller
    model.filter_conv = 15  # taps of the Conformer's convolution over time
    # of a recurrent speller: frames on either side of the median of what was read last; 0: all
    model.median_window = 0
    model.feedforward = 256  # hidden width of the feed-forward layer; 0: no such layer
    model.activation = "gelu"  # gelu | gelu_tanh | relu | swiglu
    model.norm = "rmsnorm"  # rmsnorm | layernorm
    model.use_bias = False  # biases in projections and norms
    model.tie_embeddings = True  # output matrix = embedding matrix
    model.dropout = 0.0  # on embeddings and on what each sublayer adds (Vaswani 2017, 5.4)
    model.init_stddev = 0.02  # of the matrices of the layers; 0: 1 / sqrt(fan in)
    # of embeddings, positions and the output matrix; 0: as above
    model.embedding_stddev = 0.02
    model.init_scale = 1.0  # multiplies every initial matrix
    model.dtype = "float32"  # float32 | bfloat16: activations; parameters stay float32
    model.remat = False  # recompute each layer in the backward pass to save memory
    add_mixer(model)
    return model


def add_mixer(model: ConfigDict) -> None:
    """Adds the keys of what moves information between positions.

    docs/mechanism-list.md lists every name of mixer, score, mask, normalizer and position, what it
    computes and which of these keys it reads.
    """
    model.mixer = "softmax"  # softmax | latent | linear | delta | gated_delta | state_space | ...
    # Layers that differ: one string per layer, repeated to num_layers, each a delta on the keys
    # below: ("mask=window, window=16", "", "mixer=gated_delta, position=none"). Empty: all alike.
    model.pattern = ()
    model.num_heads = 4
    model.num_kv_heads = 0  # heads that keys and values have; 0: num_heads, 1: multi-query
    model.head_width = 0  # 0: width / num_heads
    model.score = "scaled_dot"  # dot | scaled_dot | general | additive | cosine | location | ...
    model.score_width = 0  # hidden width of additive and concat; 0: that of a head
    model.temperature = 0.1  # of cosine; the first of learned_cosine
    # full | causal | window | strided | ..., or several: "causal & bigbird"
    model.mask = "causal"
    model.window = 0  # keys that a query sees: window, dilated; on either side: local, longformer
    model.prefix_length = 0  # tokens that see each other under mask=prefix
    model.dilation = 0  # distance between the keys of mask=dilated
    model.stride = 0  # of mask=strided
    model.global_tokens = 0  # leading tokens that see and are seen by all: global, longformer, ...
    model.block_length = 0  # tokens to a block of mask=bigbird, mask=moba
    model.top_blocks = 0  # blocks that a query sees under mask=moba, its own among them
    model.random_blocks = 1  # that a block sees under mask=bigbird
    model.predicted_window = 0  # keys on either side of a position that the query predicts; 0: off
    model.normalizer = "softmax"  # softmax | softmax_sink | sigmoid | entmax15 | ...
    model.sharpening = 1.0  # multiplies the scores before normalizer=softmax
    model.softcap = 0.0  # bounds scores to +-softcap by tanh; 0: off
    model.position = "rope"  # none | sinusoidal | learned | rope | alibi | t5 | fire | shaw | ...
    model.rope_base = 10000.0
    model.rope_fraction = 1.0  # of a head's channels that rope turns
    model.rope_scaling = "none"  # none | linear | ntk | yarn
    model.rope_factor = 1.0  # how many times longer than what it was trained on
    model.rope_original_length = 0  # what it was trained on; 0: task.length / rope_factor
    model.max_distance = 128  # where t5 and shaw stop telling distances apart
    model.num_buckets = 32  # of t5
    model.forget_gate = False  # scores decay by gates of the tokens between query and key
    model.talking_heads = False  # scores and weights mixed over the heads
    model.output_gate = False  # what heads read times sigmoid(x W)
    model.latent_width = 0  # kept of a token by mixer=latent; 0: width / 2
    model.rope_width = 0  # channels of its keys that turn; 0: half of head_width
    model.filter_length = 0  # taps of gated_convolution (0: task.length), location_aware (0: 15)
    model.short_convolution = 0  # taps on queries, keys, values of linear-time mixers; 0: none
    model.feature_width = 0  # features of performer and based; 0: chosen
    model.rank = 0  # positions that linformer projects to; 0: task.length / 4
    model.chunk = 0  # keys that monotonic_chunkwise looks back at; 0: 4
    model.mechanism_seed = 0  # of what is drawn once and not learned: bigbird, performer
    # how it is computed; never what
    # auto | dense | blockwise | ...; linear-time mixers: parallel | chunkwise | recurrent
    model.implementation = "auto"
    model.block_size = 0  # of blocks and chunks; 0: chosen for the length


def optimizer_config() -> ConfigDict:
    """Returns how it learns."""
    optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw | sgd
    optimizer.learning_rate = 1e-3  # the peak
    optimizer.schedule = "cosine"  # constant | cosine | linear | rsqrt
    optimizer.warmup_steps = 100
    optimizer.final_fraction = 0.1  # of the peak, reached at the last step (cosine, linear)
    optimizer.weight_decay = 0.1  # on matrices only
    optimizer.beta1 = 0.9
    optimizer.beta2 = 0.99
    optimizer.epsilon = 1e-8
    optimizer.clip_norm = 1.0  # of the whole gradient; 0: no clipping
    optimizer.accumulate = 1  # splits each batch into this many parts, one after another
    return optimizer


def train_config() -> ConfigDict:
    """Returns how long, and how often it is looked at and saved."""
    train = ConfigDict()
    train.steps = 1500
    train.log_every = 50  # steps between rows of training metrics
    train.eval_every = 250  # steps between evaluations
    train.eval_batches = 16  # batches of an evaluation
    train.checkpoint_every = 500  # steps between checkpoints; the last step always saves
    train.keep_checkpoints = 2
    return train


def decoding_config() -> ConfigDict:
    """Returns how sequences are searched for once training has ended."""
    decoding = ConfigDict()
    decoding.beam = 1  # hypotheses that are kept; 1: greedy
    # scores are log p / ((5 + length) / 6)^length_penalty (Wu 2016, equation 14)
    decoding.length_penalty = 0.0
    decoding.coverage_penalty = 0.0  # beta of the same equation; for models with attention
    decoding.ctc_weight = 0.0  # of CTC in the score, for models that have both (Watanabe 2017)
    decoding.max_length = 0  # tokens of a hypothesis; 0: task.length
    return decoding


def interpret_config() -> ConfigDict:
    """Returns what is measured of a model's attention, beside what the task measures."""
    interpret = ConfigDict()
    # columns of every evaluation, one number and one to each head: entropy | distance | sink |
    # previous_token | induction | ...
    interpret.measures = ()
    interpret.final = ()  # asked when training ends: head_importance | faithfulness | rollout | ...
    interpret.examples = 256  # about how many of the last split these are asked on
    return interpret


def parallel_config() -> ConfigDict:
    """Returns which devices do what. It changes no result and is no part of a run's identity.

    A count is a number of devices along that axis of the mesh; 0: as many as fit.
    """
    parallel = ConfigDict()
    parallel.how = "jit"  # jit | pmap (splits the batch or the members only)
    parallel.member = 0  # runs of a population
    parallel.data = 0  # sequences of a batch
    parallel.context = 1  # positions of a sequence
    parallel.model = 1  # heads, feed-forward channels, vocabulary
    parallel.fsdp = False  # parameters and optimizer state are split over data too
    parallel.slice = ""  # suggested TPU slice: v5e:4x4, or 2*v5e:16x16 for two of them
    return parallel
