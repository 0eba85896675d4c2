"""Rank the held-out facts with a trained run, as a Ray job:

ray job submit --working-dir . -- python jobs/evaluate.py /shared/runs/wn18rr --split test
"""

import sys

from distkg.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
