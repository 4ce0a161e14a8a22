"""What a teacher said of each view of each training image, on disk: stored once, replayed by many trainings."""
