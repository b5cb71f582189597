"""The linen modules, one file a family; their names and sizes are in ``zoo.families``."""

from zoo.models.bert import (
    Bert,
    BertClassifier,
    BertMaskedLM,
    BertQuestionAnswering,
    BertTokenClassifier,
)
from zoo.models.clip import CLIP, CLIPText, CLIPVision
from zoo.models.cnn import CNN
from zoo.models.convnext import ConvNeXt
from zoo.models.densenet import DenseNet
from zoo.models.efficientnet import EfficientNet
from zoo.models.forecaster import Forecaster
from zoo.models.gpt import GPT
from zoo.models.llama import Llama
from zoo.models.mobilenet import MobileNetV3
from zoo.models.resnet import ResNet
from zoo.models.rnn import RNN
from zoo.models.speech import SpeechRecognizer
from zoo.models.squeezenet import SqueezeNet
from zoo.models.t5 import T5, T5Encoder
from zoo.models.text_classifier import TextClassifier
from zoo.models.text_to_image import TextToImage
from zoo.models.transformer import Transformer
from zoo.models.unet import UNet
from zoo.models.vgg import VGG
from zoo.models.vit import ViT
from zoo.models.whisper import Whisper

__all__ = [
    "CLIP",
    "CNN",
    "GPT",
    "RNN",
    "T5",
    "VGG",
    "Bert",
    "BertClassifier",
    "BertMaskedLM",
    "BertQuestionAnswering",
    "BertTokenClassifier",
    "CLIPText",
    "CLIPVision",
    "ConvNeXt",
    "DenseNet",
    "EfficientNet",
    "Forecaster",
    "Llama",
    "MobileNetV3",
    "ResNet",
    "SpeechRecognizer",
    "SqueezeNet",
    "T5Encoder",
    "TextClassifier",
    "TextToImage",
    "Transformer",
    "UNet",
    "ViT",
    "Whisper",
]
