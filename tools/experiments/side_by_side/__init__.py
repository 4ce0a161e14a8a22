"""Many students of CIFAR beside each other in one process: the images and what the teacher says of them on the device.

``network`` puts networks of one architecture into one, ``kernels`` are its operators on a GPU, ``recipe`` reads the
config files, ``images`` has data, views and the teacher's table, ``training`` the steps, ``study`` a table's jobs.
"""
