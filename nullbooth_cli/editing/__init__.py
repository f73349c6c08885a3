"""Closed-form edits, in the order of the work.

verbs, around, settings               what is asked for, as pairs of prompts and numbers
edit                                  the entrance: `edit`, `plan_edit`, `edit_problem`
problem                               the edit as read from the model: the rows of every prompt at every site
  positions, tokens                   which token of a target belongs to which token of its source
  contexts, preserved                 other prompts that have what is edited; what a store preserves
methods, solve, speed, ace            the equations
report, verdict, reach                the plan and its measures, the words for them, the edit under other thresholds
record, remember                      edit.json; a store that preserves an edit, or a taught subject, in the next change
"""
