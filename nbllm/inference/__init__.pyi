from .chat import AnswerToken as AnswerToken, answer as answer
from .chat_prompt import ChatPrompt as ChatPrompt, render_chat as render_chat
from .chat_stream import ChatStream as ChatStream
from .config import SamplingConfig as SamplingConfig
from .engine import decode as decode, generate_ids as generate_ids
from .filling import Candidate as Candidate, Fill as Fill, fill_masks as fill_masks
from .generation import Generation as Generation, Generations as Generations
from .sequence import Sequence as Sequence, make_sequences as make_sequences
from .streaming import StopScanner as StopScanner, StreamedText as StreamedText, TokenText as TokenText
from .text import generate as generate
from .token_probabilities import TokenProbability as TokenProbability
