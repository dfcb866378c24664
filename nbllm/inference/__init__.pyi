from .chat import AnswerToken as AnswerToken, answer as answer
from .chat_prompt import ChatPrompt as ChatPrompt, render_chat as render_chat
from .chat_stream import ChatStream as ChatStream
from .choices import TokenChoice as TokenChoice
from .config import SamplingConfig as SamplingConfig
from .engine import Sequence as Sequence, decode as decode, generate_ids as generate_ids
from .generation import Generation as Generation, Generations as Generations
from .streaming import StopScanner as StopScanner, StreamedText as StreamedText, TokenText as TokenText
from .text import generate as generate
