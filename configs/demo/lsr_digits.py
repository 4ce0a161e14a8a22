_base_ = 'plain_digits.py'
model = dict(head=dict(loss=dict(_delete_=True, type='LSRLoss', eps=0.1)))
