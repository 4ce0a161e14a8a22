# Stanford Cars, otherwise as CUB-200-2011; the folder holds cars_annos.mat and car_ims/, or the three of the devkit.
_base_ = 'cub_bs32_224.py'
data_root = 'data/Stanford_Cars'
data_preprocessor = dict(num_classes=196)
train_dataloader = dict(dataset=dict(type='StanfordCars', data_root=data_root))
val_dataloader = dict(dataset=dict(type='StanfordCars', data_root=data_root))
test_dataloader = val_dataloader
