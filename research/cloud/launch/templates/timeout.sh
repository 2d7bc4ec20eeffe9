  # A SIGTERM after its hours: it saves, and ends with its own code. In the foreground, because
  # timeout would else signal its process group too, and a second SIGTERM stops training at once.
  timeout --foreground --preserve-status --signal=TERM --kill-after=300 {{ options.hours }}h
