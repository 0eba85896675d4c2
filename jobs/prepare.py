"""Read a graph into a store, as a Ray job:

ray job submit --working-dir . -- python jobs/prepare.py /shared/data/wn18rr --store /shared/stores/wn18rr
"""

import sys

from distkg.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
