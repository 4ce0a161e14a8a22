"""Backbones for images of 32 pixels, which timm and MMPretrain lack."""

from fnkd_plugin.backbones.cifar_mobilenet_v2 import CIFARMobileNetV2
from fnkd_plugin.backbones.cifar_resnet import CIFARResNet

__all__ = ['CIFARMobileNetV2', 'CIFARResNet']
