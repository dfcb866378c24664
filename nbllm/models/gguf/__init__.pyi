from .header import Header as Header, read_header as read_header
from .reading import load_gguf as load_gguf
from .writing import save_gguf as save_gguf
