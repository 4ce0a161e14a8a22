"""timm models as MMPretrain classifiers, and backbones for images of 32x32 pixels."""

from fnkd_plugin.mm.models.cifar_mobilenet_v2 import CIFARMobileNetV2
from fnkd_plugin.mm.models.cifar_resnet import CIFARResNet
from fnkd_plugin.mm.models.timm_student import TimmStudent

__all__ = ['CIFARMobileNetV2', 'CIFARResNet', 'TimmStudent']
