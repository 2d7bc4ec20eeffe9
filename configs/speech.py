"""Listen, attend and spell: strings of spoken digits.

    python -m research.train --config=configs/speech.py --workdir=runs/speech
    python -m research.transcribe --workdir=runs/speech recording.wav

Strings of one to five recordings of the Free Spoken Digit Dataset, joined anew at every step.
Convolutions shorten time by four, a bidirectional LSTM listens, an LSTM with location-aware
attention (Chorowski et al. 2015) spells words, with CTC in the objective and the search (Kim et al.
2017). --config.task.path=tones needs no download; a tab-separated file of paths and transcripts,
with --config.task.join="()", trains on any recordings.

At most 23 minutes on 2 cores; 27 on one, other programs beside. Expect a word error rate of 0.7 %
on strings of one to five official test recordings, 1.7 % on validation (seed 0). With
--config.task.held_out_speaker=theo, trained on the other five speakers, 12.3 % on his recordings.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Returns the config."""
    config = base.get_config()
    config.task.name = "speech"
    config.task.path = "fsdd"
    config.task.tokenizer = "word"
    config.task.length = 16
    config.task.batch_size = 32
    config.task.buckets = 3
    config.task.test_sequences = 100
    config.task.time_masks = 2
    config.task.band_masks = 2
    config.model.name = "speech"
    config.model.width = 128
    config.model.encoder_layers = 2
    config.model.num_layers = 1
    config.model.num_heads = 1
    config.model.attention = "location_aware"
    config.model.input_feeding = True
    config.model.ctc_weight = 0.3
    config.model.dropout = 0.2
    config.model.init_stddev = 0.0
    config.model.embedding_stddev = 0.1
    config.model.tie_embeddings = False
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 200
    config.optimizer.beta2 = 0.98
    config.optimizer.final_fraction = 0.05
    config.train.steps = 3000
    config.train.log_every = 50
    config.train.eval_every = 250
    config.train.checkpoint_every = 500
    config.decoding.beam = 5
    config.decoding.ctc_weight = 0.3
    return config
