"""What a video file must show, known by construction, and what a reader makes of it.

marks: pictures that carry their number and their orientation. coded: such pictures, encoded. stamps: when a
file says that they are shown. files: codec, container and stamps put together, with the truth. access: the
ways of reading, and their judgement.
"""
