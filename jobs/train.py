"""Train on the cluster that runs this job, as a Ray job:

ray job submit --working-dir . -- python jobs/train.py CONFIG.yaml --run /shared/runs/wn18rr
"""

import sys

from distkg.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
