"""Starts DIFT from a clone: `torchrun train/dift.py --config train/configs/dift_3b.yaml key=value ...`."""

from fourdthinker.trainers.dift import main

if __name__ == "__main__":
    main()
