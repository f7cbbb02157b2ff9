"""What is measured of training: how fast it is, and the published form beside ours on an accelerator."""
