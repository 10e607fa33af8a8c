"""Images in few denoising steps."""
