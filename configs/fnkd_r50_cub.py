# The paper's ResNet-152 -> ResNet-50 on CUB-200-2011. Give your own files with
# --cfg-options data_root=FOLDER teacher_checkpoint=FILE.
_base_ = 'cub/fnkd_r50_from_r152_cub.py'
