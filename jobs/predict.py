"""Answer a query with a trained run, as a Ray job:

ray job submit --working-dir . -- python jobs/predict.py /shared/runs/wn18rr --anchor X --relation Y
"""

import sys

from distkg.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
