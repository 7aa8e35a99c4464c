"""`make sim`: what the mesh costs and achieves at sizes that no test bench has; ARGS names one table alone."""

import sys

from tests.simulation import placement_table, presence_table

TABLES = {"presence": presence_table.table, "placement": placement_table.table}

for name in sys.argv[1:] or TABLES:
    print(TABLES[name](), end="\n\n", flush=True)
