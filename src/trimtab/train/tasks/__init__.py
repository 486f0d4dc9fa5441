"""Generated tasks of the Long Range Arena: nothing to download, any number of examples."""

from trimtab.train.tasks.listops import TOKENS as TOKENS
from trimtab.train.tasks.listops import expression as expression
from trimtab.train.tasks.listops import generate_listops as generate_listops
from trimtab.train.tasks.listops import root_operator_accuracy as root_operator_accuracy
from trimtab.train.tasks.pathfinder import PATHFINDER as PATHFINDER
from trimtab.train.tasks.pathfinder import PathfinderSettings as PathfinderSettings
from trimtab.train.tasks.pathfinder import generate_pathfinder as generate_pathfinder
