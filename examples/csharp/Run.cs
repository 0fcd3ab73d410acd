// Run a sparse model from C#: dotnet run MODEL LIBRARY INPUT OUTPUT, with the package Microsoft.ML.OnnxRuntime
//
// INPUT and OUTPUT hold float32 numbers as they lie in memory, of the model's one input, where a length that the model
// leaves open is 1, and of its first output. Neither compiled nor run in our tests.
using System;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

if (args.Length != 4) throw new ArgumentException("MODEL LIBRARY INPUT OUTPUT");
using var options = new SessionOptions();
options.RegisterCustomOpLibraryV2(args[1], out var library); // the sparse operators
using var session = new InferenceSession(args[0], options);
var (name, input) = session.InputMetadata.First();
var shape = input.Dimensions.Select(d => Math.Max(d, 1)).ToArray();
var data = MemoryMarshal.Cast<byte, float>(File.ReadAllBytes(args[2])).ToArray();
var x = NamedOnnxValue.CreateFromTensor(name, new DenseTensor<float>(data, shape));
using var results = session.Run(new[] { x });
var made = results.First().AsTensor<float>().ToArray();
File.WriteAllBytes(args[3], MemoryMarshal.AsBytes(made.AsSpan()).ToArray());
