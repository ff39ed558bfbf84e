"""Chat templates in the manner of well-known families, for the tiny tokenizer's special tokens."""

from finetune_assets.models.tokenization.rows import CHATML_TOOLS
from finetune_assets_tests.tiny import CHATML

LLAMA_LIKE = """\
{{- bos_token }}
{%- set date_string = date_string if date_string is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "[system]\\n\\nToday: " + date_string + "\\n" + system }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- eos_token }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '[assistant]\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}" + eos_token }}
    {%- else %}
        {{- '[' + message['role'] + ']\\n\\n' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]\\n\\n' }}{%- endif %}
"""

MISTRAL_LIKE = """\
{%- set ns = namespace(system='') %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' + (ns.system if loop.index0 < 2 else '') + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'tool' %}{{- '[TOOL]' + message['content'] + '[/TOOL]' }}
    {%- elif message.tool_calls is defined %}
        {{- ' [CALL]' + message.tool_calls | map(attribute='function') | list | tojson }}
        {{- eos_token }}
    {%- else %}{% generation %}{{- ' ' + message['content'] + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""

FAMILIES = {
    "chatml": CHATML,
    "chatml_tools": CHATML_TOOLS.read_text(),
    "llama": LLAMA_LIKE,
    "mistral": MISTRAL_LIKE,
}
