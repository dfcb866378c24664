from .launch import Launch as Launch
from .process_group import ProcessGroup as ProcessGroup
from .ranks import OneRank as OneRank, Ranks as Ranks
