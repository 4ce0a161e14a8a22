"""Train many CIFAR students at once in one process, with images and teacher predictions on the device.

``network`` combines networks of one architecture, ``kernels`` are its operators on a GPU, ``recipe`` reads config
files, ``images`` has data, views and the teacher's predictions, ``training`` the steps, and ``study`` a table's jobs.
"""
