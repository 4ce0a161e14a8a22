_base_ = [
    '../_base_/models/mbv3_cub2010.py',
    '../_base_/datasets/cub2010_bs32_80.py',
    '../_base_/schedules/cub2010_scratch_12e.py',
    '../_base_/default_runtime.py',
]
