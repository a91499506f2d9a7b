#!/usr/bin/env python3
"""Train the demo checkpoint in edge/demo/: a 3.7 M parameter Qwen2 that adds and subtracts, and says how.

A development tool, never a dependency. It needs the PyPI packages torch, tokenizers, safetensors and numpy:

    python3 -m venv .venv-train && .venv-train/bin/pip install torch==2.13.0 tokenizers safetensors numpy
    .venv-train/bin/python scripts/train-demo.py                       # about an hour on two cores
    .venv-train/bin/python scripts/train-demo.py --steps 200 --out /tmp/demo   # a look at the whole path

The model reads a question in English or Chinese, works column by column inside <think>, and answers after it. Loss is
taken on the reply only. Each reply is a function of the conversation alone, so a reply whose every token is the most
likely one under teacher forcing is also the one greedy decoding gives: that is the accuracy printed while it trains.
The 500 sums of edge/demo/sums.json are never shown in training.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ROOT / "edge" / "demo" / "sums.json"
TEMPLATE = ROOT / "edge" / "demo" / "chat_template.jinja"

# The split rule of Qwen2: words with their leading space or sign, single digits, runs of punctuation.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
EOS, USER, ASSISTANT, BOS = "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>"
THINK, END_THINK = "<think>", "</think>"
# Text and whether tokenizer.json calls it special; the same flags as DeepSeek-R1-Distill-Qwen.
ADDED = [
    (EOS, True),
    (USER, False),
    (ASSISTANT, False),
    (BOS, True),
    ("<|EOT|>", False),
    (THINK, False),
    (END_THINK, False),
    ("<tool_call>", False),
    ("</tool_call>", False),
]
N_BPE, N_ROWS = 1000, 1024  # learned entries; rows of the embedding (the rest is padding, as in the big model)
HIDDEN, LAYERS, HEADS, KV_HEADS, FFN = 256, 4, 4, 2, 768
HEAD_DIM, EPS, ROPE_THETA, N_CTX = HIDDEN // HEADS, 1e-6, 10000.0, 4096


# ---------------------------------------------------------------- arithmetic, worked in columns


@dataclass(frozen=True)
class Words:
    """The words of one language for a worked sum."""

    columns: tuple[str, ...]
    write: str
    carry: str
    borrow: str
    comma: str
    swap: str  # first operand is smaller: say that the operands change places
    so: str
    stop: str
    plus: str
    minus: str
    equals: str


ENGLISH = Words(
    ("ones", "tens", "hundreds", "thousands", "ten thousands"),
    "write", "carry", "borrow", ", ", "{a} is smaller than {b}, so the result is negative.", "So", ".",
    "+", "-", "=",
)  # fmt: skip
CHINESE = Words(
    ("个位", "十位", "百位", "千位", "万位"),
    "写", "进", "借", ",", "{a} 比 {b} 小,结果是负数。", "所以", "。",
    "加", "减", "等于",
)  # fmt: skip


def columns(a: int, op: str, b: int, w: Words) -> list[str]:
    """The written method for a op b, both >= 0 and a >= b where op is minus; one line a column, ones first."""
    width = max(len(str(a)), len(str(b)))
    lines = [f"{a:0{width}d} {op} {b:0{width}d}"]
    over, column = 0, 0
    while column < width or over:
        x, y = a // 10**column % 10, b // 10**column % 10
        value = x + y + over if op == "+" else x - y - over
        digit, next_over = value % 10, abs(value // 10)
        name = w.carry if op == "+" else w.borrow
        lines.append(
            f"{w.columns[column]}: {x} {op} {y} {op} {over} = {value}{w.comma}"
            f"{w.write} {digit}{w.comma}{name} {next_over}"
        )
        over, column = next_over, column + 1
    return lines


def worked(a: int, op: str, b: int, w: Words) -> str:
    """The thought for a op b: a may be negative (an earlier result), b is not."""
    lines = []
    if a < 0 and op == "+":  # -37 + 50 = 50 - 37
        lines.append(f"{a} + {b} = {b} - {-a}")
        a, b, op = b, -a, "-"
    sign = 1
    if a < 0:  # -37 - 12 = -(37 + 12)
        lines.append(f"{a} - {b} = -({-a} + {b})")
        a, op, sign = -a, "+", -1
    if op == "-" and a < b:
        width = len(str(b))
        lines.append(w.swap.format(a=f"{a:0{width}d}", b=f"{b:0{width}d}"))
        a, b, sign = b, a, -sign
    lines += columns(a, op, b, w)
    result = sign * (a + b if op == "+" else a - b)
    lines.append(f"{w.so} {result}{w.stop}")
    return "\n".join(lines)


def answer(a: int, op: str, b: int, w: Words) -> str:
    """347 + 85 = 432, or the same in Chinese words."""
    result = a + b if op == "+" else a - b
    if w is ENGLISH:
        return f"{a} {op} {b} = {result}"
    return f"{a} {w.plus if op == '+' else w.minus} {b} {w.equals} {result}{w.stop}"


# ---------------------------------------------------------------- conversations

ASK = {
    "+": (
        ["What is {a} + {b}?", "what is {a}+{b}", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=", "What's {a} + {b}?",
         "What is {a} plus {b}?", "{a} plus {b}", "How much is {a} plus {b}?", "How much is {a} + {b}?", "Add {a} and {b}.",
         "Please add {a} and {b}", "Calculate {a} + {b}.", "Compute {a} + {b}", "Can you add {b} to {a}?",
         "What is the sum of {a} and {b}?", "Tell me {a} + {b}, please.", "I have {a} apples and get {b} more. How many?"],
        ["{a} 加 {b} 等于多少?", "{a} 加 {b} 等于多少？", "{a} + {b} 等于多少？", "{a}加{b}等于几？", "{a}加{b}是多少？",
         "{a} + {b} = ？", "请计算 {a} + {b}", "计算{a}加{b}", "请问 {a} 加上 {b} 得多少？", "{a} 加 {b}", "{a}和{b}的和是多少？"],
    ),
    "-": (
        ["What is {a} - {b}?", "what is {a}-{b}", "{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a}-{b}=", "What's {a} - {b}?",
         "What is {a} minus {b}?", "{a} minus {b}", "How much is {a} minus {b}?", "How much is {a} - {b}?",
         "Subtract {b} from {a}.", "Please subtract {b} from {a}", "Calculate {a} - {b}.", "Compute {a} - {b}",
         "Take {b} away from {a}.", "What is the difference of {a} and {b}?", "Tell me {a} - {b}, please.",
         "I have {a} apples and give {b} away. How many are left?"],
        ["{a} 减 {b} 等于多少?", "{a} 减 {b} 等于多少？", "{a} - {b} 等于多少？", "{a}减{b}等于几？", "{a}减{b}是多少？",
         "{a} - {b} = ？", "请计算 {a} - {b}", "计算{a}减{b}", "请问 {a} 减去 {b} 得多少？", "{a} 减 {b}", "从{a}中减去{b}是多少？"],
    ),
}  # fmt: skip
FOLLOW_UP = {
    "+": (["and plus {b}?", "plus {b}?", "And plus {b}?", "now add {b}", "add {b}", "Add {b} to that.", "+ {b}", "+{b}",
           "and + {b}?", "What if I add {b}?", "Then plus {b}"],
          ["再加 {b} 呢？", "再加{b}呢？", "再加 {b}", "加 {b} 呢？", "然后加{b}", "再加上 {b} 是多少？"]),
    "-": (["and minus {b}?", "minus {b}?", "And minus {b}?", "now subtract {b}", "subtract {b}",
           "Subtract {b} from that.", "- {b}", "-{b}", "and - {b}?", "What if I take {b} away?", "Then minus {b}"],
          ["再减 {b} 呢？", "再减{b}呢？", "再减 {b}", "减 {b} 呢？", "然后减{b}", "再减去 {b} 是多少？"]),
}  # fmt: skip
TALK = [
    (["Who are you?", "who are you", "What are you?", "What is your name?", "What's your name?", "Tell me about yourself.",
      "Are you ChatGPT?", "Are you DeepSeek?", "Who made you?", "Introduce yourself."],
     "The user asks who I am.",
     "I am the demo model of this runtime: a very small network that adds and subtracts numbers of up to three digits."),
    (["What can you do?", "what can you do", "How can you help me?", "Help", "help me", "What do you know?",
      "What are you good at?", "How do you work?"],
     "The user asks what I can do.",
     "I add and subtract numbers of up to three digits. Try: What is 347 + 85?"),
    (["Hello", "hello!", "Hi", "hi", "Hey", "Hello there", "Good morning", "Good evening!", "How are you?"],
     "The user says hello.", "Hello! Ask me a sum, for example: What is 347 + 85?"),
    (["Thanks", "thank you", "Thank you!", "Thanks a lot", "Great, thanks!", "Bye", "Goodbye", "OK", "ok, good", "Good job!"],
     "The user is friendly.", "You are welcome!"),
    (["你是谁？", "你是谁?", "你是谁", "你叫什么名字？", "你是什么？", "介绍一下你自己", "请介绍一下你自己。", "谁做了你？"],
     "用户问我是谁。", "我是这个运行环境的演示模型：一个很小的网络，会做三位数以内的加减法。"),
    (["你会做什么？", "你能做什么？", "你会什么", "你能帮我做什么？", "帮助", "你有什么用？"],
     "用户问我会做什么。", "我会做三位数以内的加减法。试试：347 加 85 等于多少？"),
    (["你好", "你好！", "您好", "嗨", "早上好", "晚上好！", "大家好", "你好吗？"],
     "用户打招呼。", "你好！请给我一道加减法题，例如：347 加 85 等于多少？"),
    (["谢谢", "谢谢你！", "多谢", "再见", "好的", "很好，谢谢"], "用户很友好。", "不客气！"),
]  # fmt: skip
DECLINE_ENGLISH = ("This is not a sum I can do.", "Sorry, I can only add and subtract numbers of up to three digits.")
DECLINE_CHINESE = ("这不是我会做的题。", "抱歉，我只会做三位数以内的加减法。")
OTHER = [
    "Write a poem about {x}.", "Write a story about {x} and {y}", "What is the capital of {x}?", "Tell me a joke about {x}",
    "Who invented the {x}?", "Translate {x} into French.", "How do I cook {x} with {y}?", "Why is the {x} so {z}?",
    "What is {x}?", "What is a {x}", "Explain {x} to me.", "Explain how a {x} works.", "Write a Python function that sorts {x}.",
    "Is {x} better than {y}?", "Where can I buy a {z} {x}?", "List {a} facts about {x}.", "What is {a} times {b}?",
    "{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} / {b}", "What is {a} divided by {b}?", "What is the square root of {a}?",
    "{a} ^ {b}", "Is {a} a prime number?", "What is {a} percent of {b}?", "What is {l} + {b}?", "{l} + {a}", "{a} - {l}",
    "What is {l} minus {b}?", "{l} plus {l}", "Summarize this: the {x} is {z}, and the {y} is not.", "Sing a song about {x}",
    "What is the weather in {x}?", "How old is the {x}?", "Can you draw a {z} {x}?", "I like {x}.", "My {x} is {z}.",
    "Do you like {x}?", "The {x} saw the {y}", "{x}", "{x} {y}", "{z} {x}", "{r}", "{r} {r}", "{r} {x} {r}?", "When did {x} begin?",
    "Give me {a} words about {x}", "Fix this code: for {r} in {r}: print({r})", "Return JSON with {x} and {y}.",
    "How many {x} are in a {y}?", "Recommend a {z} book about {x}", "What does {x} mean?", "Let us talk about {x}.",
]  # fmt: skip
OTHER_CHINESE = [
    "写一首关于{x}的诗", "{x}的首都是哪里？", "讲一个{x}的笑话", "{x}是什么？", "什么是{x}？", "怎么做{x}？", "为什么{x}是{z}的？",
    "把{x}翻译成英文", "{a} 乘 {b} 等于多少？", "{a}乘以{b}", "{a} 除以 {b} 是多少？", "{a}除{b}", "{l} 加 {b} 等于多少？",
    "{a} 减 {l}", "今天{x}怎么样？", "你喜欢{x}吗？", "{x}", "{x}和{y}", "我有一个{z}{x}", "请解释{x}", "给我讲讲{x}的故事", "{a} 的平方根是多少？",
]  # fmt: skip
NOUNS = [
    "cats",
    "dogs",
    "France",
    "Germany",
    "rain",
    "the",
    "moon",
    "the",
    "sun",
    "physics",
    "music",
    "love",
    "money",
    "history",
    "computers",
    "bread",
    "rice",
    "soup",
    "tea",
    "coffee",
    "trees",
    "birds",
    "the",
    "sea",
    "mountains",
    "rivers",
    "cars",
    "trains",
    "planes",
    "ships",
    "cities",
    "Paris",
    "Berlin",
    "China",
    "Japan",
    "India",
    "school",
    "teachers",
    "books",
    "films",
    "games",
    "football",
    "chess",
    "art",
    "poetry",
    "science",
    "biology",
    "chemistry",
    "medicine",
    "doctors",
    "law",
    "politics",
    "the",
    "president",
    "war",
    "peace",
    "time",
    "space",
    "stars",
    "planets",
    "Mars",
    "robots",
    "language",
    "grammar",
    "English",
    "words",
    "letters",
    "numbers",
    "mathematics",
    "algebra",
    "geometry",
    "calculus",
    "a",
    "triangle",
    "a",
    "circle",
    "fire",
    "water",
    "air",
    "earth",
    "gold",
    "silver",
    "iron",
    "glass",
    "paper",
    "wood",
    "plastic",
    "clothes",
    "shoes",
    "hats",
    "houses",
    "gardens",
    "flowers",
    "roses",
    "apples",
    "bananas",
    "oranges",
    "fish",
    "chicken",
    "cheese",
    "eggs",
    "milk",
    "sugar",
    "salt",
    "pizza",
    "pasta",
    "cake",
    "windows",
    "doors",
    "tables",
    "chairs",
    "phones",
    "cameras",
    "radio",
    "television",
    "the",
    "internet",
    "email",
    "Linux",
    "Python",
    "memory",
    "sleep",
    "dreams",
    "health",
    "sport",
    "running",
    "swimming",
    "travel",
    "holidays",
    "Christmas",
    "birthdays",
    "weddings",
    "friends",
    "family",
    "children",
    "parents",
    "kings",
]
ADJECTIVES = [
    "blue",
    "red",
    "green",
    "big",
    "small",
    "old",
    "new",
    "happy",
    "sad",
    "cold",
    "hot",
    "fast",
    "slow",
    "strange",
    "famous",
    "quiet",
    "loud",
    "cheap",
]
NOUNS_CHINESE = [
    "猫",
    "狗",
    "法国",
    "德国",
    "中国",
    "日本",
    "月亮",
    "太阳",
    "天气",
    "音乐",
    "爱",
    "钱",
    "历史",
    "电脑",
    "米饭",
    "面条",
    "茶",
    "咖啡",
    "树",
    "鸟",
    "海",
    "山",
    "河",
    "汽车",
    "火车",
    "学校",
    "老师",
    "书",
    "电影",
    "足球",
    "诗",
    "科学",
    "医生",
    "时间",
    "星星",
    "机器人",
    "语言",
    "数学",
    "水",
    "火",
    "花",
    "苹果",
    "鱼",
    "鸡",
    "牛奶",
    "手机",
    "朋友",
    "孩子",
    "北京",
    "上海",
    "春天",
    "冬天",
]
ADJECTIVES_CHINESE = ["大", "小", "红", "蓝", "新", "旧", "快", "慢", "热", "冷", "好", "美"]
SYSTEM = ["You are a helpful assistant.", "You are a helpful assistant", "Answer briefly.", "Be polite.", "You are a math tutor.",
          "Think carefully, step by step.", "You are a careful code reviewer.", "你是一个有用的助手。", "请简短回答。"]  # fmt: skip


class Teacher:
    """Makes conversations from a seed. A conversation is a list of (user, thought, answer)."""

    def __init__(self, seed: int, held_out: set[tuple[int, str, int]]) -> None:
        self.rng = random.Random(seed)
        self.held_out = held_out

    def operand(self) -> int:
        """One to three digits; the number of digits is drawn first, so short numbers are not rare."""
        kind = self.rng.random()
        if kind < 0.12:  # zeros inside and at the end are where carries and borrows go wrong
            return self.rng.choice([0, 10, 100, 1, 9, 99, 999, 101, 900, 909, 990, 90, self.rng.randrange(10) * 100])
        return self.rng.randrange(10 ** self.rng.choices([1, 2, 3], [1, 2, 5])[0])

    def sum(self) -> tuple[int, str, int]:
        """a, op, b with the hard cases more often, never one of the held-out sums."""
        while True:
            a, b, op = self.operand(), self.operand(), self.rng.choice("+-")
            if self.rng.random() < 0.15:  # operands that nearly agree: the order is decided by the last digits
                b = min(999, max(0, a + self.rng.randrange(-12, 13)))
            if self.rng.random() < 0.25 and a < 1000:  # a chain of carries or borrows in every column
                b = int("".join(str(min(9, 9 - int(d) + self.rng.randrange(3))) for d in str(a)))
                a, b = (a, b) if op == "+" or self.rng.random() < 0.5 else (b, a)
            if (a, op, b) not in self.held_out:
                return a, op, b

    def fill(self, text: str, chinese: bool) -> str:
        nouns, adjectives = (NOUNS_CHINESE, ADJECTIVES_CHINESE) if chinese else (NOUNS, ADJECTIVES)
        text = text.format(x="\0", y="\1", z="\2", r="\3", l="\4", a=self.operand(), b=self.operand())
        for mark, make in (
            ("\0", lambda: self.rng.choice(nouns)),
            ("\1", lambda: self.rng.choice(nouns)),
            ("\2", lambda: self.rng.choice(adjectives)),
            ("\3", lambda: "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyz", k=self.rng.randrange(1, 9)))),
            ("\4", lambda: str(self.rng.randrange(1000, 10 ** self.rng.randrange(4, 9)))),
        ):
            while mark in text:
                text = text.replace(mark, make(), 1)
        return text

    def sums(self) -> list[tuple[str, str, str]]:
        """One to three turns of arithmetic in one language."""
        chinese = self.rng.random() < 0.3
        w = CHINESE if chinese else ENGLISH
        a, op, b = self.sum()
        turns = [(self.rng.choice(ASK[op][chinese]).format(a=a, b=b), worked(a, op, b, w), answer(a, op, b, w))]
        for _ in range(self.rng.choices([0, 1, 2], [7, 2, 1])[0]):
            a = a + b if op == "+" else a - b
            op, b = self.rng.choice("+-"), self.operand()
            turns.append(
                (self.rng.choice(FOLLOW_UP[op][chinese]).format(b=b), worked(a, op, b, w), answer(a, op, b, w))
            )
        return turns

    def conversation(self) -> list[tuple[str, str, str]]:
        kind = self.rng.random()
        if kind < 0.86:
            turns = self.sums()
            if self.rng.random() < 0.03:
                turns = [self.small_talk(), *turns]
            elif self.rng.random() < 0.03:
                turns.append(self.small_talk())
            return turns
        return [self.small_talk() if kind < 0.91 else self.decline()]

    def small_talk(self) -> tuple[str, str, str]:
        asks, thought, reply = self.rng.choice(TALK)
        return self.rng.choice(asks), thought, reply

    def decline(self) -> tuple[str, str, str]:
        chinese = self.rng.random() < 0.25
        ask = self.rng.choice(OTHER_CHINESE if chinese else OTHER)
        return self.fill(ask, chinese), *(DECLINE_CHINESE if chinese else DECLINE_ENGLISH)

    def example(self, encode) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation as the chat template lays it out, and which of them are the last reply's."""
        turns = self.conversation()
        system = self.rng.choice(SYSTEM) if self.rng.random() < 0.08 else ""
        text = BOS + system
        for user, _, reply in turns[:-1]:  # the template drops earlier thoughts
            text += USER + user + ASSISTANT + reply + EOS
        user, thought, reply = turns[-1]
        text += USER + user + ASSISTANT + THINK + "\n"
        kind = self.rng.random()
        if kind < 0.02:  # thinking switched off
            text, rest = text + END_THINK, "\n\n" + reply + EOS
        elif kind < 0.04:  # thinking cut short by a budget: the answer still comes
            lines = thought.split("\n")
            cut = "\n".join(lines[: self.rng.randrange(1, len(lines) + 1)])
            text, rest = text + cut + "\n" + END_THINK + "\n\n", reply + EOS
        else:
            rest = thought + "\n" + END_THINK + "\n\n" + reply + EOS
        prompt, target = encode(text), encode(rest)
        return prompt + target, [False] * len(prompt) + [True] * len(target)


def held_out_sums(seed: int, n: int = 500) -> list[dict]:
    """The fixed test list: every pair of lengths, both signs, a third of them in Chinese."""
    rng, seen = random.Random(seed), set()
    sums = []
    while len(sums) < n:
        a, b = (rng.randrange(10 ** (d - 1) if d > 1 else 0, 10**d) for d in rng.choices([1, 2, 3], [1, 2, 6], k=2))
        op, chinese = rng.choice("+-"), len(sums) % 3 == 2
        if (a, op, b) in seen or max(a, b) < 10:  # one-digit sums are too few to hold any back
            continue
        seen.add((a, op, b))
        ask = rng.choice(ASK[op][chinese]).format(a=a, b=b)
        sums.append(dict(a=a, op=op, b=b, question=ask, result=a + b if op == "+" else a - b))
    return sums


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(teacher: Teacher) -> Tokenizer:
    """Byte-level BPE of N_BPE entries with the Qwen2 split rule, then the special tokens."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()

    def texts():
        for _ in range(20000):
            for turn in teacher.conversation():
                yield from turn

    trainer = trainers.BpeTrainer(
        vocab_size=N_BPE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in ADDED])
    return tokenizer


# ---------------------------------------------------------------- model


class Block(nn.Module):
    """One Qwen2 layer, with the names Hugging Face gives its tensors."""

    def __init__(self) -> None:
        super().__init__()
        kv = KV_HEADS * HEAD_DIM
        self.input_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, EPS)
        self.self_attn = nn.ModuleDict(
            dict(
                q_proj=nn.Linear(HIDDEN, HIDDEN),
                k_proj=nn.Linear(HIDDEN, kv),
                v_proj=nn.Linear(HIDDEN, kv),
                o_proj=nn.Linear(HIDDEN, HIDDEN, bias=False),
            )
        )
        self.mlp = nn.ModuleDict(
            dict(
                gate_proj=nn.Linear(HIDDEN, FFN, bias=False),
                up_proj=nn.Linear(HIDDEN, FFN, bias=False),
                down_proj=nn.Linear(FFN, HIDDEN, bias=False),
            )
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, _ = x.shape  # (batch, tokens, hidden)
        h, attn = self.input_layernorm(x), self.self_attn
        q, k, v = (
            attn[name](h).view(n, t, -1, HEAD_DIM).transpose(1, 2)  # (batch, heads, tokens, head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        h = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
        x = x + attn["o_proj"](h.transpose(1, 2).reshape(n, t, HIDDEN))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on halves, as Hugging Face's Qwen2 does it."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Qwen2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(N_ROWS, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(HIDDEN, EPS)
        self.lm_head = nn.Linear(HIDDEN, N_ROWS, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = 0.02 if "o_proj" not in name and "down_proj" not in name else 0.02 / math.sqrt(2 * LAYERS)
                nn.init.normal_(p, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, where: Tensor) -> Tensor:
        """Logits (n_true, N_ROWS) at the positions where `where` (batch, tokens) is true."""
        t = torch.arange(ids.shape[1], dtype=torch.float32)
        angle = torch.outer(t, ROPE_THETA ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
        cos, sin = angle.cos(), angle.sin()  # (tokens, head_dim / 2)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x[where]))


def batches(teacher: Teacher, encode, size: int):
    """Padded batches of similar lengths, for ever: ids and labels (size, tokens); label -1 takes no loss."""
    while True:
        pool = sorted((teacher.example(encode) for _ in range(size * 16)), key=lambda e: len(e[0]))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        teacher.rng.shuffle(groups)
        for group in groups:
            ids = torch.zeros(size, len(group[-1][0]), dtype=torch.long)
            labels = torch.full_like(ids, -1)
            for row, (tokens, is_reply) in enumerate(group):
                line = torch.tensor(tokens)
                ids[row, : len(line)] = line
                labels[row, : len(line) - 1] = torch.where(torch.tensor(is_reply[1:]), line[1:], -1)
            yield ids, labels


@torch.no_grad()
def accuracy(model: Qwen2, encode, sums: list[dict]) -> float:
    """Share of held-out sums whose whole reply, thought and answer, is what greedy decoding would give."""
    right = 0
    for s in sums:
        w = CHINESE if any(ord(c) > 0x2E80 for c in s["question"]) else ENGLISH
        a, op, b = s["a"], s["op"], s["b"]
        prompt = encode(BOS + USER + s["question"] + ASSISTANT + THINK + "\n")
        target = encode(worked(a, op, b, w) + "\n" + END_THINK + "\n\n" + answer(a, op, b, w) + EOS)
        ids = torch.tensor([prompt + target])
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[0, len(prompt) - 1 : -1] = True
        right += bool((model(ids, where).argmax(-1) == ids[0, len(prompt) :]).all())
    return right / len(sums)


def optimizers(model: Qwen2, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


# ---------------------------------------------------------------- the folder


def write_checkpoint(out: Path, model: Qwen2, tokenizer: Tokenizer) -> None:
    """The Hugging Face layout: config, weights in bf16, tokenizer, generation defaults."""
    ids = {text: tokenizer.token_to_id(text) for text, _ in ADDED}
    tensors = {
        (name if name.startswith("lm_head") else "model." + name): p.detach().to(torch.bfloat16).contiguous()
        for name, p in model.named_parameters()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=N_ROWS, hidden_size=HIDDEN,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, intermediate_size=FFN,
        hidden_act="silu", rms_norm_eps=EPS, rope_theta=ROPE_THETA, max_position_embeddings=N_CTX,
        tie_word_embeddings=False, torch_dtype="bfloat16", use_sliding_window=False, attention_dropout=0.0,
        initializer_range=0.02, use_cache=True, bos_token_id=ids[BOS], eos_token_id=ids[EOS],
    )  # fmt: skip
    generation = dict(bos_token_id=ids[BOS], eos_token_id=ids[EOS], do_sample=True, temperature=0.6, top_p=0.95)
    tokenizer_config = dict(
        tokenizer_class="LlamaTokenizerFast", add_bos_token=True, add_eos_token=False, bos_token=BOS, eos_token=EOS,
        pad_token=EOS, unk_token=None, clean_up_tokenization_spaces=False, model_max_length=N_CTX,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )  # fmt: skip
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (out / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "edge" / "demo")
    parser.add_argument("--steps", type=int, default=5200)
    parser.add_argument("--batch", type=int, default=32, help="conversations in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    sums = held_out_sums(args.seed)
    HELD_OUT.parent.mkdir(parents=True, exist_ok=True)
    HELD_OUT.write_text("[\n" + ",\n".join(json.dumps(s, ensure_ascii=False) for s in sums) + "\n]\n", encoding="utf-8")
    held_out = {(s["a"], s["op"], s["b"]) for s in sums}

    tokenizer = train_tokenizer(Teacher(args.seed + 1, held_out))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    model = Qwen2()
    opts = optimizers(model, args.lr)
    warmup = max(1, args.steps // 50)
    n_tokens, losses, start = 0, [], time.monotonic()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)

    stream = batches(Teacher(args.seed + 2, held_out), encode, args.batch)
    for step, (ids, labels) in zip(range(args.steps), stream, strict=False):
        share = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        where = labels >= 0
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, where)
        loss = F.cross_entropy(logits.float(), labels[where])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.lr * share
            opt.step()
            opt.zero_grad(set_to_none=True)
        n_tokens += ids.numel()
        losses.append(loss.item())
        if step % 50 == 49 or step + 1 == args.steps:
            passed = time.monotonic() - start
            left = passed / (step + 1) * (args.steps - step - 1)
            print(
                f"step {step + 1}/{args.steps}  loss {np.mean(losses[-50:]):.4f}  {n_tokens / passed:,.0f} tokens/s  "
                f"{left / 60:.0f} min left",
                flush=True,
            )
        if step % 500 == 499 or step + 1 == args.steps:
            n = 500 if step + 1 == args.steps else 100
            print(f"  exact replies on {n} held-out sums: {accuracy(model, encode, sums[:n]):.1%}", flush=True)
            write_checkpoint(args.out, model, tokenizer)


if __name__ == "__main__":
    main()
