  -m {{ job.module }}
{% for argument in job.arguments %}
  {{ argument }}
{% endfor %}
