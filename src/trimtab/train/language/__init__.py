"""Text for encoders: corpora that ship in packages, tokenizers, pre-training and classification."""

from trimtab.train.language.classification import TextClassification as TextClassification
from trimtab.train.language.classification import accuracy as accuracy
from trimtab.train.language.classification import classification_loss as classification_loss
from trimtab.train.language.classification import encode_texts as encode_texts
from trimtab.train.language.classification import length_buckets as length_buckets
from trimtab.train.language.classification import scores as scores
from trimtab.train.language.corpora import LabelledText as LabelledText
from trimtab.train.language.corpora import dictionary_entries as dictionary_entries
from trimtab.train.language.corpora import package_docstrings as package_docstrings
from trimtab.train.language.corpora import text_documents as text_documents
from trimtab.train.language.corpora import wordnet_glosses as wordnet_glosses
from trimtab.train.language.pretraining import PretrainingBatches as PretrainingBatches
from trimtab.train.language.pretraining import pretraining_batches as pretraining_batches
from trimtab.train.language.pretraining import pretraining_loss as pretraining_loss
from trimtab.train.language.pretraining import pretraining_optimizer as pretraining_optimizer
from trimtab.train.language.tokens import SPECIAL_TOKENS as SPECIAL_TOKENS
from trimtab.train.language.tokens import Vocabulary as Vocabulary
from trimtab.train.language.tokens import load_vocabulary as load_vocabulary
from trimtab.train.language.tokens import train_vocabulary as train_vocabulary
