from .header import Header as Header, read_header as read_header
from .reading import load_weights as load_weights
from .sampling import read_sampling as read_sampling
from .tokenizer import read_end_tokens as read_end_tokens, read_tokenizer as read_tokenizer
from .writing import save_gguf as save_gguf
