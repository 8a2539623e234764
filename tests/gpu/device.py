"""Where the GPU lane runs; the CPU in a rehearsal."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
