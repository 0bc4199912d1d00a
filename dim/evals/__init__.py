"""Evaluators: one file and one public function each; `dim.build.EVALUATORS` names them for evaluate.py."""
