"""Group-wise quantisation of weights and activations, with scales applied after each group."""

from trimtab.kernels.group_quantized import QuantizedMatrix as QuantizedMatrix
from trimtab.kernels.group_quantized import dequantize as dequantize
from trimtab.kernels.group_quantized import quantized_linear as quantized_linear
from trimtab.reduce.quantization.rewrite import Quantize as Quantize
from trimtab.reduce.quantization.rewrite import quantize as quantize
from trimtab.reduce.quantization.rounding import awq_scales as awq_scales
from trimtab.reduce.quantization.rounding import fake_quantize as fake_quantize
from trimtab.reduce.quantization.rounding import gptq as gptq
from trimtab.reduce.quantization.rounding import quantize_matrix as quantize_matrix
