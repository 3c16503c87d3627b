"""treat(): one arm beside its control. May import training, trials and what is below."""
