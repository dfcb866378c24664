from .documents import Document as Document
from .embedded import SOURCES as SOURCES
from .loading import load as load
from .omissions import Omissions as Omissions
