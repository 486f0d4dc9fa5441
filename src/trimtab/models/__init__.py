"""Equinox modules of the models that the systems are about."""

from trimtab.models.bert import bert_base as bert_base
from trimtab.models.bert import bert_large as bert_large
from trimtab.models.bert import bert_like as bert_like
from trimtab.models.encoder import Classifier as Classifier
from trimtab.models.encoder import Encoder as Encoder
from trimtab.models.encoder import EncoderConfig as EncoderConfig
from trimtab.models.encoder import EncoderOutput as EncoderOutput
from trimtab.models.encoder import PretrainingModel as PretrainingModel
from trimtab.models.encoder import cast as cast
from trimtab.models.encoder import trainable as trainable
from trimtab.models.fnet import fnet_base as fnet_base
from trimtab.models.fnet import fnet_large as fnet_large
from trimtab.models.fnet import with_attention as with_attention
from trimtab.models.fourier import fourier_mix as fourier_mix
from trimtab.models.fourier import hartley_mix as hartley_mix
from trimtab.models.fourier import ragged_fourier_mix as ragged_fourier_mix
from trimtab.models.mixing import MIXERS as MIXERS
from trimtab.models.mixing import Mixer as Mixer
from trimtab.models.mixing import attention_layers as attention_layers
from trimtab.models.mixing import hybrid as hybrid
