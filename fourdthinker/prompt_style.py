"""How a question becomes the text of a prompt: the question's parts, the instruction, the chat template."""

from __future__ import annotations

from dataclasses import dataclass

from fourdthinker.records import Record, options_in

INSTRUCTION = (
    "Work it out step by step and picture the scene in your mind where that helps. Put the reasoning between "
    "<think> and </think>, then give the letter and the text of the option you choose between <answer> and "
    "</answer>."
)
# For tokenizers that bring no chat template: ChatML with one vision slot for each clip or picture.
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n"
    "{% for part in ([{'type': 'text', 'text': turn.content}] if turn.content is string else turn.content) %}"
    "{% if part.type in ('image', 'video') %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class PromptStyle:
    """How a question becomes a prompt; saved with the checkpoint.

    Attributes:
        instruction: appended to every question, after an empty line; "" for none.
        newline_after_assistant: whether a prompt to generate from ends with the newline after
            `<|im_start|>assistant`, or leaves that newline to the model. Training supervises it in both
            cases. Without effect where the chat template begins the answer itself, as Qwen3-VL Thinking's
            does with `<think>`: prompts end with that.
        seconds_per_grid: None: the true seconds of the clip's temporal patches go to the position ids
            (Qwen2.5-VL) or into the text before them (Qwen3-VL). A number: as if that many lay between them,
            whatever the clip.
        preamble: text before the pictures; "" for none.
        system: the system turn of records that have none of their own; "": that of the chat template, if any.
    """

    instruction: str = INSTRUCTION
    newline_after_assistant: bool = True
    seconds_per_grid: float | None = None
    preamble: str = ""
    system: str = ""


# The released 4DThinker checkpoints were trained with positions as at 2 fps on frames taken at 1 fps.
RELEASED = PromptStyle(newline_after_assistant=False, seconds_per_grid=1.0)


# What MLLM-4D's models are asked with, in our words: its ST-reward and its training data have this form.
ST_COT = (
    "You are an analyst of videos. Put your reasoning between <thinking> and </thinking>. In it, first give "
    "the state of the scene in the first frame and in the last frame, each as two lines, `Camera Center: "
    "[x, y, z]` and `Object Center: [x, y, z]`, in metres, with null for what cannot be told; then reason "
    "about what changes between them. Put the answer alone between <answer> and </answer>."
)


def question_text(record: Record, instruction: str = "") -> str:
    """The user's turn: question, options as "A. text" lines unless they are in it, and the instruction.

    Args:
        record: the question and its options.
        instruction: what the prompt style adds to every question; "": nothing.

    Returns:
        The parts with a blank line between.
    """
    parts = [record.question]
    if record.options and options_in(record.question) != record.options:
        parts.append("\n".join(f"{letter}. {text}" for letter, text in record.options.items()))
    if instruction:
        parts.append(instruction)
    return "\n\n".join(parts)
