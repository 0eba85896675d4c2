"""Search for a configuration on the cluster that runs this job, as a Ray job:

ray job submit --working-dir . -- python jobs/tune.py CONFIG.yaml --space SPACE.yaml --run /shared/searches/wn18rr
"""

import sys

from distkg.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
