"""`condense` with the other `robust`: the three strongest coordinates left out, nothing standardised.

python docs/study/leave_out.py trial …, as batch R of results.md.
"""

import functools

from condense.cli.app import main
from condense.dispersion.variants import PENALTIES, robust

if __name__ == "__main__":
    PENALTIES["robust"] = functools.partial(robust, leave_out=3)
    main()
