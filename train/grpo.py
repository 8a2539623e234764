"""Starts 4DRL from a clone: `torchrun train/grpo.py --config train/configs/grpo_3b.yaml key=value ...`."""

from fourdthinker.trainers.grpo import main

if __name__ == "__main__":
    main()
