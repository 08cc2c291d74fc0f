"""A chat template with the logic of Qwen3's: thinking that can be turned off, and tools."""

from __future__ import annotations

TEMPLATE = """{%- if persona is defined and persona %}
{{- "<|im_start|>system\\n" ~ persona ~ "<|im_end|>\\n" }}
{%- endif %}
{%- if tools %}
    {{- "<|im_start|>system\\nTools:" }}
    {%- for tool in tools %}
        {{- "\\n" ~ (tool | tojson) }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant", "tool"] %}
        {{- raise_exception("Unexpected message role.") }}
    {%- endif %}
    {{- "<|im_start|>" ~ message.role ~ "\\n" ~ (message.content or "") }}
    {%- for call in message.tool_calls or [] %}
        {{- "<tool_call>" ~ call.function.name ~ (call.function.arguments | tojson) }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}
"""
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "Lima"}}}
CALLED = [
    {"role": "user", "content": "What hour is it in Lima?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "name": "clock"},
]
